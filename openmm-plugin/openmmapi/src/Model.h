// A loaded generator, and the description of its atoms in its file.
#ifndef MODEJUMP_MODEL_H_
#define MODEJUMP_MODEL_H_

#include <array>
#include <memory>
#include <string>
#include <vector>

struct modejump_model;
struct modejump_model_options;

namespace ModeJumpPlugin {

/** Throws an OpenMMException with the core's message if the status is not 0. */
void check(int status);

class Model {
public:
    /** One Model per distinct file content, options and process, as long as it is in use. */
    static std::shared_ptr<const Model> fromBytes(const std::string& bytes, const std::string& name,
                                                  const modejump_model_options& options);
    ~Model();
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    modejump_model* handle() const { return model; }
    int numAtoms() const { return atoms; }
    /** Label of an atom, such as ALA2:CB (atom 11 of the model). */
    std::string label(int atom) const;

    std::string name, hash;
    /** Temperature in kelvin; 0 if the file does not state it. */
    double temperature = 0;
    /** Whether the model is steerable, i.e. follows the temperature of the simulation. */
    bool steerable = false;
    /** Whether the model has one generator for each of several metastable states, between which moves jump. */
    bool hasModes = false;
    /** Empty if the file does not say. */
    std::vector<std::string> elements, names, residues;
    std::vector<std::array<int, 2>> bonds;

private:
    Model(const std::string& bytes, const std::string& name, const modejump_model_options& options);
    void readDescription(const std::string& json);
    modejump_model* model = nullptr;
    int atoms = 0;
};

std::string readFile(const std::string& path);

} // namespace ModeJumpPlugin

#endif
