// Reads the JSON of a model file's description, which the core has validated.
#ifndef MODEJUMP_JSON_H_
#define MODEJUMP_JSON_H_

#include <map>
#include <string>
#include <vector>

namespace ModeJumpPlugin {

class Json {
public:
    /** Throws an OpenMMException that gives the position of an error. */
    static Json parse(const std::string& text);
    /** A member by name; null if it is missing or if this is not an object. */
    const Json& operator[](const std::string& key) const;
    const Json& operator[](int index) const;
    const std::vector<Json>& items() const { return array; }
    double number(double otherwise) const { return kind == Kind::Number ? value : otherwise; }
    bool is(const std::string& word) const { return kind == Kind::String && text == word; }
    std::vector<std::string> strings() const;

private:
    friend class JsonReader;
    enum class Kind { Null, Boolean, Number, String, Array, Object };
    Kind kind = Kind::Null;
    double value = 0;
    std::string text;
    std::vector<Json> array;
    std::map<std::string, Json> object;
};

} // namespace ModeJumpPlugin

#endif
