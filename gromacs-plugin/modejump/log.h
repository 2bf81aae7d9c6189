/* Log of the attempts, one line each.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_LOG_H
#define MODEJUMP_LOG_H

#include "gromacs.h"
#include "modejump.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

namespace modejump
{

inline const char* fateOf(std::uint32_t outcome)
{
    constexpr const char* fates[] = { "accepted",   "rejected",   "out_of_support", "singular",
                                      "non_finite", "constraint", "chirality",      "wrong_mode" };
    return outcome < std::size(fates) ? fates[outcome] : "unknown";
}

/// Writes a line for every attempt to the file named in the options; nothing if none is named.
class Log
{
public:
    /// Opens a new log, or that of the run which is continued, without the lines after its checkpoint. A file in the way of a new
    /// log is backed up, as GROMACS does with its own files.
    Log(const std::string& path, bool isContinuation, int64_t firstStep) : path_(path)
    {
        if (path_.empty())
        {
            return;
        }
        const char* const header = "step,potential,potential_proposed,log_acceptance,fate\n";
        struct stat       there{};
        if (stat(path_.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
        {
            // a device or a pipe, which cannot be locked
            file_.reset(std::fopen(path_.c_str(), "w"));
            checkWritten(file_ != nullptr ? std::fputs(header, file_.get()) : EOF, path_);
            return;
        }
        // whatever happens here, one of the files has the kept lines; two runs that start together collide at this name, others
        // at that of the log
        const std::string part = path_ + ".part";
        file_.reset(openAlone(part));
        File found(nullptr, std::fclose);
        try
        {
            found.reset(openAlone(path_));
        }
        catch (...)
        {
            std::remove(part.c_str());
            throw;
        }
        // a run that was killed here has left a file; a device cannot be truncated
        const bool        isEmpty = ftruncate(fileno(file_.get()), 0) == 0 || errno == EINVAL;
        const std::string kept    = isContinuation ? keptLines(firstStep) : "";
        checkWritten(isEmpty ? std::fprintf(file_.get(), "%s%s", header, kept.c_str()) : EOF, part);
        if (!isContinuation && there.st_size > 0)
        {
            make_backup(path_);
        }
        if (std::rename(part.c_str(), path_.c_str()) != 0)
        {
            throw std::runtime_error("could not rename " + part + " to " + path_);
        }
    }

    /// Writes a line; potential energies of the current configuration and of the proposal that decided, kJ/mol.
    void write(int64_t step, double potential, double proposed, const modejump_outcome& outcome)
    {
        if (file_ == nullptr)
        {
            return;
        }
        const int written = std::fprintf(file_.get(),
                                         "%" PRId64 ",%.9g,%.9g,%.9g,%s\n",
                                         step,
                                         potential,
                                         proposed,
                                         outcome.log_acceptance,
                                         fateOf(outcome.outcome));
        checkWritten(written, path_);
    }

private:
    using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

    /// Lines of the log on attempts up to the checkpoint.
    std::string keptLines(int64_t firstStep) const
    {
        std::string   kept;
        std::ifstream old(path_);
        for (std::string line; std::getline(old, line);)
        {
            char*      end  = nullptr;
            const auto step = std::strtoll(line.c_str(), &end, 10);
            if (end != line.c_str() && *end == ',' && step <= firstStep)
            {
                kept += line + "\n";
            }
        }
        return kept;
    }

    /// Opens a file to append to, locked by this run: two runs would silently destroy each other's log. On a file system without
    /// locks this cannot be detected.
    std::FILE* openAlone(const std::string& path) const
    {
        std::FILE* file = std::fopen(path.c_str(), "a");
        if (file == nullptr)
        {
            throw std::runtime_error("could not write " + path);
        }
        struct stat opened{}, there{};
        if (fstat(fileno(file), &opened) != 0 || !S_ISREG(opened.st_mode))
        {
            return file;
        }
        const bool isTaken = flock(fileno(file), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (isTaken || stat(path.c_str(), &there) != 0 || there.st_ino != opened.st_ino)
        {
            std::fclose(file);
            throw std::runtime_error("another run is writing " + path_
                                     + ": use an options file with a separate log for each run, or run them in separate folders");
        }
        return file;
    }

    /// Ends the run if the disk is full: a log with missing attempts would look complete.
    void checkWritten(int written, const std::string& path) const
    {
        if (written < 0 || std::fflush(file_.get()) != 0)
        {
            throw std::runtime_error("could not write " + path);
        }
    }

    const std::string path_;
    File              file_{ nullptr, std::fclose };
};

} // namespace modejump

#endif
