// The particles that a move moves, accessed where the platform keeps their positions, velocities and forces.
#ifndef MODEJUMP_MOVEDPARTICLES_H_
#define MODEJUMP_MOVEDPARTICLES_H_

#include "openmm/Kernel.h"
#include "openmm/Vec3.h"

#include <functional>
#include <memory>
#include <vector>

namespace OpenMM {
class ContextImpl;
}

namespace ModeJumpPlugin {

/** Access to the moved particles. Arrays are [n][3] in the order of `particles`: nm, nm/ps, kJ/mol/nm. */
class MovedParticles {
public:
    /**
     * On the platforms CUDA, HIP and OpenCL works on the device, so that no array of all particles is copied to the host; otherwise through
     * the host.
     */
    static std::unique_ptr<MovedParticles> of(OpenMM::ContextImpl& context, const std::vector<int>& particles);
    virtual ~MovedParticles() = default;

    /** Saves the positions of all particles. */
    virtual void save() = 0;
    /** Restores the positions of all particles at the last `save`, to the last bit. */
    virtual void restore() = 0;
    /** Positions at the last `save`. */
    virtual void getPositions(std::vector<double>& x) = 0;
    /**
     * Sets the positions of the moved particles; the others stay as at the last `save`, and virtual sites are updated. May be called once
     * before the next `restore` or `save`.
     */
    virtual void setPositions(const std::vector<double>& x) = 0;

    virtual void getVelocities(std::vector<double>& v) = 0;
    virtual void setVelocities(const std::vector<double>& v) = 0;
    /** Forces as last computed. */
    virtual void getForces(std::vector<double>& f) = 0;

    /** Saves the forces on all particles as last computed. */
    virtual void saveForces() = 0;
    /** v += time (F_saved - F)/m for all particles, with F as last computed. */
    virtual void carryVelocities(double time) = 0;

    const std::vector<int> particles;

protected:
    explicit MovedParticles(const std::vector<int>& particles) : particles(particles) {}
};

/** Works on copies of the arrays of all particles, which every platform supports. */
class HostParticles : public MovedParticles {
public:
    HostParticles(OpenMM::ContextImpl& context, const std::vector<int>& particles);
    void save() override;
    void restore() override;
    void getPositions(std::vector<double>& x) override;
    void setPositions(const std::vector<double>& x) override;
    void getVelocities(std::vector<double>& v) override;
    void setVelocities(const std::vector<double>& v) override;
    void getForces(std::vector<double>& f) override;
    void saveForces() override;
    void carryVelocities(double time) override;

private:
    OpenMM::ContextImpl& context;
    /** Saves and restores single-precision positions without rounding. */
    std::unique_ptr<OpenMM::Kernel> keeper;
    std::vector<OpenMM::Vec3> positions, trial, velocities, forces, savedForces;
};

/** Access on the device; null if the platform has no device, or the library was built without OpenMM's device headers. */
std::unique_ptr<MovedParticles> particlesOnDevice(OpenMM::ContextImpl& context, const std::vector<int>& particles);

/** Runs `body` with OpenMM's CUDA context current on this thread; returns false, without running it, if there is none. */
bool inCudaContext(OpenMM::ContextImpl& context, const std::function<void()>& body);

} // namespace ModeJumpPlugin

#endif
