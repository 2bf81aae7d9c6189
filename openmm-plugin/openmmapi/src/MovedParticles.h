// The particles that a move moves: where a platform keeps their positions, velocities and forces.
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

/** Arrays are [n][3] in the order of `particles`: nm, nm/ps, kJ/mol/nm. */
class MovedParticles {
public:
    /** On the device of the platforms CUDA, HIP and OpenCL, so that no array of all particles is copied to the host; else through the host. */
    static std::unique_ptr<MovedParticles> of(OpenMM::ContextImpl& context, const std::vector<int>& particles);
    virtual ~MovedParticles() = default;

    /** Notes the positions of all particles, to come back to. */
    virtual void save() = 0;
    /** Puts all particles where they were at the last `save`, to the last bit. */
    virtual void restore() = 0;
    /** As at the last `save`. */
    virtual void getPositions(std::vector<double>& x) = 0;
    /** The others stay as at the last `save`; virtual sites follow. Between this and the next `restore` or `save` it is called once. */
    virtual void setPositions(const std::vector<double>& x) = 0;

    virtual void getVelocities(std::vector<double>& v) = 0;
    virtual void setVelocities(const std::vector<double>& v) = 0;
    /** As they were last computed. */
    virtual void getForces(std::vector<double>& f) = 0;

    /** Notes the forces on all particles as they were last computed. */
    virtual void saveForces() = 0;
    /** v += time (F_saved - F)/m of all particles, F as it was last computed. */
    virtual void carryVelocities(double time) = 0;

    const std::vector<int> particles;

protected:
    explicit MovedParticles(const std::vector<int>& particles) : particles(particles) {}
};

/** By copies of the arrays of all particles, which every platform has. */
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

/** Null where the platform has no device, or the library was built without the headers of OpenMM's devices. */
std::unique_ptr<MovedParticles> particlesOnDevice(OpenMM::ContextImpl& context, const std::vector<int>& particles);

/** Runs `body` with the CUDA context in which OpenMM computes current on this thread; false, without running it, where there is none. */
bool inCudaContext(OpenMM::ContextImpl& context, const std::function<void()>& body);

} // namespace ModeJumpPlugin

#endif
