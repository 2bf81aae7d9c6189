#include "Json.h"

#include "openmm/OpenMMException.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <sstream>

using namespace std;

namespace ModeJumpPlugin {

class JsonReader {
public:
    explicit JsonReader(const string& text) : text(text) {}

    Json document() {
        Json result = element(0);
        space();
        if (at != text.size())
            fail("unexpected text after the end");
        return result;
    }

private:
    const string& text;
    size_t at = 0;

    [[noreturn]] void fail(const string& reason) const {
        throw OpenMM::OpenMMException("modejump: malformed JSON at byte " + to_string(at) + ": " + reason);
    }

    void space() {
        while (at < text.size() && strchr(" \t\r\n", text[at]) != nullptr)
            at++;
    }

    bool take(char c) {
        space();
        if (at >= text.size() || text[at] != c)
            return false;
        at++;
        return true;
    }

    void expect(char c) {
        if (!take(c))
            fail(string("expected ") + c);
    }

    bool word(const char* literal) {
        const bool here = text.compare(at, strlen(literal), literal) == 0;
        at += here ? strlen(literal) : 0;
        return here;
    }

    Json element(int depth) {
        if (depth > 100)
            fail("nested too deeply");
        Json result;
        space();
        if (take('{'))
            members(result, depth);
        else if (take('['))
            elements(result, depth);
        else if (at < text.size() && text[at] == '"') {
            result.kind = Json::Kind::String;
            result.text = quoted();
        } else if (word("true") || word("false"))
            result.kind = Json::Kind::Boolean;
        else if (!word("null"))
            numeral(result);
        return result;
    }

    void members(Json& result, int depth) {
        result.kind = Json::Kind::Object;
        if (take('}'))
            return;
        do {
            space();
            const string key = quoted();
            expect(':');
            result.object[key] = element(depth + 1);
        } while (take(','));
        expect('}');
    }

    void elements(Json& result, int depth) {
        result.kind = Json::Kind::Array;
        if (take(']'))
            return;
        do
            result.array.push_back(element(depth + 1));
        while (take(','));
        expect(']');
    }

    void numeral(Json& result) {
        const size_t end = min(text.find_first_not_of("+-.0123456789eE", at), text.size());
        // not strtod, which expects the decimal comma of the program's locale
        istringstream number(text.substr(at, end - at));
        number.imbue(locale::classic());
        result.kind = Json::Kind::Number;
        if (!(number >> result.value) || number.peek() != EOF)
            fail("expected a value");
        at = end;
    }

    string quoted() {
        expect('"');
        string result;
        while (at < text.size() && text[at] != '"') {
            if (text[at] != '\\') {
                result += text[at++];
                continue;
            }
            const char code = at + 1 < text.size() ? text[at + 1] : '\0';
            const char* known = strchr("\"\"\\\\//b\bf\fn\nr\rt\t", code);
            at += 2;
            if (code == 'u') {
                // Atom names are ASCII; anything else only has to be skipped.
                const long point = strtol(text.substr(at, 4).c_str(), nullptr, 16);
                result += point < 128 ? static_cast<char>(point) : '?';
                at += 4;
            } else if (code != '\0' && known != nullptr)
                result += known[1];
            else
                fail("unknown escape");
        }
        expect('"');
        return result;
    }
};

Json Json::parse(const string& text) { return JsonReader(text).document(); }

const Json& Json::operator[](const string& key) const {
    static const Json nothing;
    const auto member = object.find(key);
    return member == object.end() ? nothing : member->second;
}

const Json& Json::operator[](int index) const {
    static const Json nothing;
    return index < static_cast<int>(array.size()) ? array[index] : nothing;
}

vector<string> Json::strings() const {
    vector<string> result;
    for (const Json& item : array)
        result.push_back(item.text);
    return result;
}

} // namespace ModeJumpPlugin
