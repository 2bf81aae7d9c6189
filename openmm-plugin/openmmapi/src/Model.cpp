#include "Model.h"

#include "Json.h"
#include "modejump.h"
#include "openmm/OpenMMException.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

void check(int status) {
    if (status == 0)
        return;
    const char* message = nullptr;
    modejump_last_error(&message);
    throw OpenMMException(string("modejump: ") + (message == nullptr ? "unknown error" : message));
}

string readFile(const string& path) {
    errno = 0;
    ifstream file(path, ios::binary);
    ostringstream bytes;
    if (!file || !(bytes << file.rdbuf())) { // which an empty file fails, too
        const string reason = errno == 0 ? "the file is empty" : strerror(errno);
        throw OpenMMException("modejump: the model file " + path + " could not be read (" + reason + "); pass the path of a file written by " +
                              "`modejump train` or `modejump convert`");
    }
    return bytes.str();
}

shared_ptr<const Model> Model::fromBytes(const string& bytes, const string& name, const modejump_model_options& options) {
    if (options.flags == MODEJUMP_CURRENT_CONTEXT)
        return shared_ptr<const Model>(new Model(bytes, name, options)); // for one Context only
    static mutex guard;
    // The map is keyed by the content itself, so two files can never be mistaken for one another; entries of models that are no
    // longer in use are dropped at the next call.
    const char* device = nullptr;
    check(modejump_device(&device));
    using Key = tuple<size_t, string, uint32_t, uint32_t, uint32_t, uint64_t, uint64_t, double, string>;
    static map<Key, weak_ptr<const Model>> registry;
    lock_guard<mutex> lock(guard);
    for (auto entry = registry.begin(); entry != registry.end();)
        entry = entry->second.expired() ? registry.erase(entry) : next(entry);
    auto& slot = registry[Key(std::hash<string>()(bytes), device, options.flags, options.precision, options.decoding, options.segment,
                              options.decoding_passes, options.decoding_tolerance, bytes)];
    shared_ptr<const Model> model = slot.lock();
    if (!model) {
        model.reset(new Model(bytes, name, options));
        slot = model;
    }
    return model;
}

Model::Model(const string& bytes, const string& name, const modejump_model_options& options) : name(name) {
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    const int status = modejump_model_load_buffer_with(data, bytes.size(), &options, &model);
    if (status != 0) {
        const char* message = nullptr;
        modejump_last_error(&message);
        string reason = message == nullptr ? "" : message;
        const string nameless = "model file (in memory): "; // the library was given only the bytes
        if (reason.compare(0, nameless.size(), nameless) == 0)
            reason.erase(0, nameless.size());
        throw OpenMMException("modejump: model " + name + ": " + reason);
    }
    try {
        uint64_t dimension = 0, auxiliary = 0;
        double latentTemperature = 0;
        const char *json = nullptr, *hex = nullptr;
        check(modejump_model_dimension(model, &dimension));
        check(modejump_model_steering(model, &latentTemperature, &auxiliary));
        check(modejump_model_metadata(model, &json));
        check(modejump_model_hash(model, &hex));
        hash = hex;
        steerable = latentTemperature > 0;
        dimension -= auxiliary;
        if (dimension % 3 != 0)
            throw OpenMMException("modejump: model " + name + " has " + to_string(dimension) +
                                  " coordinates, which is not a multiple of three");
        atoms = static_cast<int>(dimension / 3);
        readDescription(json);
    } catch (...) {
        modejump_model_free(model);
        throw;
    }
}

Model::~Model() { modejump_model_free(model); }

void Model::readDescription(const string& json) {
    const Json card = Json::parse(json);
    temperature = card["temperature"].number(0.0);
    hasModes = card["model"]["kind"].is("modes");
    const Json& topology = card["topology"];
    elements = topology["elements"].strings();
    names = topology["names"].strings();
    residues = topology["residues"].strings();
    for (const Json& bond : topology["bonds"].items())
        bonds.push_back({static_cast<int>(bond[0].number(0)), static_cast<int>(bond[1].number(0))});
}

string Model::label(int atom) const {
    const string number = "atom " + to_string(atom + 1) + " of the model";
    if (atom >= static_cast<int>(names.size()) || atom >= static_cast<int>(residues.size()))
        return number;
    return residues[atom] + ":" + names[atom] + " (" + number + ")";
}

} // namespace ModeJumpPlugin
