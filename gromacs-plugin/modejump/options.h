/* The file of options.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_OPTIONS_H
#define MODEJUMP_OPTIONS_H

#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace modejump
{

/// Options in the file named by MODEJUMP_OPTIONS.
struct Options
{
    std::string   model;
    std::string   log;
    std::string   method      = "independence";
    int64_t       steps       = 0;
    int64_t       firstAtom   = 1;
    int64_t       lastAtom    = 0; // default: the atoms of the model are consecutive
    std::uint64_t proposals   = 1;
    /// Default: the ld-seed of the run, so that runs which share a file of options do not share their jumps.
    std::optional<std::uint64_t> seed;
    double        temperature = 0; // default: that of the coupling

    explicit Options(const std::string& path)
    {
        std::ifstream file(path);
        if (!file)
        {
            throw std::runtime_error("could not read " + path + ", set by MODEJUMP_OPTIONS");
        }
        for (std::string line; std::getline(file, line);)
        {
            line = trimmed(line.substr(0, line.find(';')));
            if (line.empty())
            {
                continue;
            }
            const std::size_t equals = line.find('=');
            if (equals == std::string::npos)
            {
                throw std::runtime_error(path + ": `" + line + "` is not of the form key = value");
            }
            set(trimmed(line.substr(0, equals)), trimmed(line.substr(equals + 1)));
        }
        if (model.empty() || steps <= 0)
        {
            throw std::runtime_error(path + " must set model = FILE and steps = N, the number of steps between attempts");
        }
    }

private:
    static std::string trimmed(const std::string& text)
    {
        const char*       blanks = " \t\r";
        const std::size_t first  = text.find_first_not_of(blanks);
        return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) - first + 1);
    }

    template<typename Number>
    static Number number(const std::string& key, const std::string& value, Number least)
    {
        std::istringstream stream(value);
        Number             result{};
        if (value.find('-') != std::string::npos || !(stream >> result) || !stream.eof() || result < least)
        {
            throw std::runtime_error("the value of " + key + ", `" + value + "`, is not a number or is out of range");
        }
        return result;
    }

    void set(const std::string& key, const std::string& value)
    {
        if (key == "model")
        {
            model = value;
        }
        else if (key == "log")
        {
            log = value;
        }
        else if (key == "method")
        {
            if (value != "independence" && value != "isir")
            {
                throw std::runtime_error("unknown method " + value + "; known methods: independence, isir");
            }
            method = value;
        }
        else if (key == "steps")
        {
            steps = number<int64_t>(key, value, 1);
        }
        else if (key == "atoms")
        {
            const std::size_t dash = value.find('-');
            if (dash == std::string::npos)
            {
                throw std::runtime_error("atoms = " + value + " is not a range first-last");
            }
            firstAtom = number<int64_t>(key, trimmed(value.substr(0, dash)), 1);
            lastAtom  = number<int64_t>(key, trimmed(value.substr(dash + 1)), firstAtom);
        }
        else if (key == "seed")
        {
            seed = number<std::uint64_t>(key, value, 0);
        }
        else if (key == "proposals")
        {
            proposals = number<std::uint64_t>(key, value, 1);
        }
        else if (key == "temperature")
        {
            temperature = number<double>(key, value, 0);
        }
        else
        {
            throw std::runtime_error("unknown option " + key
                                     + "; known options: model, steps, atoms, seed, proposals, method, temperature, log");
        }
    }
};

} // namespace modejump

#endif
