#include "MovedParticles.h"

#ifndef MODEJUMP_OPENMM_DEVICES

namespace ModeJumpPlugin {
std::unique_ptr<MovedParticles> particlesOnDevice(OpenMM::ContextImpl&, const std::vector<int>&) { return nullptr; }
bool inCudaContext(OpenMM::ContextImpl&, const std::function<void()>&) { return false; }
} // namespace ModeJumpPlugin

#else

#include "openmm/Integrator.h"
#include "openmm/Platform.h"
#include "openmm/State.h"
#include "openmm/common/ComputeContext.h"
#include "openmm/common/ContextSelector.h"
#include "openmm/cuda/CudaPlatform.h"
#include "openmm/hip/HipPlatform.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/opencl/OpenCLPlatform.h"

#include <algorithm>
#include <string>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

// Source in the common language that OpenMM translates to CUDA, HIP and OpenCL. A slot is the position of a particle in the arrays, which
// changes when OpenMM reorders atoms.
const char* const SOURCE = R"(
KERNEL void gatherPositions(int n, GLOBAL const int* RESTRICT slots, GLOBAL mixed* RESTRICT x, GLOBAL const real4* RESTRICT posq
#ifdef USE_MIXED_PRECISION
        , GLOBAL const real4* RESTRICT posqCorrection
#endif
        ) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        real4 p = posq[slots[i]];
        x[3*i] = p.x;
        x[3*i+1] = p.y;
        x[3*i+2] = p.z;
#ifdef USE_MIXED_PRECISION
        real4 c = posqCorrection[slots[i]];
        x[3*i] += c.x;
        x[3*i+1] += c.y;
        x[3*i+2] += c.z;
#endif
    }
}

/* posq.w is a charge and stays. */
KERNEL void scatterPositions(int n, GLOBAL const int* RESTRICT slots, GLOBAL const mixed* RESTRICT x, GLOBAL real4* RESTRICT posq
#ifdef USE_MIXED_PRECISION
        , GLOBAL real4* RESTRICT posqCorrection
#endif
        ) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        real4 p = posq[slots[i]];
        p.x = (real) x[3*i];
        p.y = (real) x[3*i+1];
        p.z = (real) x[3*i+2];
        posq[slots[i]] = p;
#ifdef USE_MIXED_PRECISION
        posqCorrection[slots[i]] = make_real4((real) (x[3*i]-p.x), (real) (x[3*i+1]-p.y), (real) (x[3*i+2]-p.z), 0);
#endif
    }
}

KERNEL void gatherVelocities(int n, GLOBAL const int* RESTRICT slots, GLOBAL mixed* RESTRICT v, GLOBAL const mixed4* RESTRICT velm) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        mixed4 all = velm[slots[i]];
        v[3*i] = all.x;
        v[3*i+1] = all.y;
        v[3*i+2] = all.z;
    }
}

/* velm.w is the inverse of a mass and stays. */
KERNEL void scatterVelocities(int n, GLOBAL const int* RESTRICT slots, GLOBAL const mixed* RESTRICT v, GLOBAL mixed4* RESTRICT velm) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        mixed4 all = velm[slots[i]];
        all.x = v[3*i];
        all.y = v[3*i+1];
        all.z = v[3*i+2];
        velm[slots[i]] = all;
    }
}

/* Forces are in fixed point, of 2^-32. */
KERNEL void gatherForces(int n, int stride, GLOBAL const int* RESTRICT slots, GLOBAL mixed* RESTRICT f, GLOBAL const mm_long* RESTRICT force) {
    const mixed scale = 1/(mixed) 0x100000000;
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        f[3*i] = scale*force[slots[i]];
        f[3*i+1] = scale*force[slots[i]+stride];
        f[3*i+2] = scale*force[slots[i]+2*stride];
    }
}

KERNEL void carryVelocities(int numAtoms, int stride, mixed time, GLOBAL const mm_long* RESTRICT saved, GLOBAL const mm_long* RESTRICT force,
        GLOBAL mixed4* RESTRICT velm) {
    for (int i = GLOBAL_ID; i < numAtoms; i += GLOBAL_SIZE) {
        mixed4 v = velm[i];
        const mixed scale = time*v.w/(mixed) 0x100000000;
        v.x += scale*(saved[i]-force[i]);
        v.y += scale*(saved[i+stride]-force[i+stride]);
        v.z += scale*(saved[i+2*stride]-force[i+2*stride]);
        velm[i] = v;
    }
}
)";

/** The context that holds OpenMM's arrays, or null. */
ComputeContext* computeContextOf(ContextImpl& context) {
    if ((Platform::getOpenMMVersion() + ".").rfind(MODEJUMP_OPENMM_VERSION ".", 0) != 0)
        return nullptr; // its classes may differ from those that this was built with
    // Their definitions need the headers of each vendor. They derive only from ComputeContext, which therefore lies at their beginning.
    const string& name = context.getPlatform().getName();
    void* data = context.getPlatformData();
    if (name == "CUDA")
        return reinterpret_cast<ComputeContext*>(static_cast<CudaPlatform::PlatformData*>(data)->contexts[0]);
    if (name == "HIP")
        return reinterpret_cast<ComputeContext*>(static_cast<HipPlatform::PlatformData*>(data)->contexts[0]);
    if (name == "OpenCL")
        return reinterpret_cast<ComputeContext*>(static_cast<OpenCLPlatform::PlatformData*>(data)->contexts[0]);
    return nullptr;
}

/** Notifies the integrator as Context.setPositions does, since it may have stored forces. */
struct Notice : Integrator {
    static void of(Integrator& integrator) { (integrator.*(&Notice::stateChanged))(State::Positions); }
};

/**
 * Works on OpenMM's own arrays, on its device, context and queue. Atoms are reordered in steps of dynamics and by Context.setPositions, so
 * during an attempt all of them keep their slots, and arrays of all atoms can be saved as they are.
 */
class DeviceParticles : public MovedParticles {
public:
    DeviceParticles(ContextImpl& context, ComputeContext& compute, const vector<int>& particles);
    void save() override;
    void restore() override;
    void getPositions(vector<double>& x) override;
    void setPositions(const vector<double>& x) override;
    void getVelocities(vector<double>& v) override;
    void setVelocities(const vector<double>& v) override;
    void getForces(vector<double>& f) override;
    void saveForces() override;
    void carryVelocities(double time) override;

private:
    unique_ptr<ArrayInterface> array(size_t size, int elementSize, const string& name);
    unique_ptr<ArrayInterface> likeness(ArrayInterface& other, const string& name);
    ComputeKernel kernelOnPositions(ComputeProgram program, const string& name, ArrayInterface& x);
    ComputeKernel kernelOnVelocities(ComputeProgram program, const string& name);
    void findSlots();
    Vec3 cellOf(size_t i) const;

    ContextImpl& context;
    ComputeContext& compute;
    /** Slot of each particle in OpenMM's arrays, on the host and on the device. */
    vector<int> slots;
    unique_ptr<ArrayInterface> slotArray, numbers, proposal, savedPosq, savedCorrection, savedForces;
    ComputeKernel gatherPositions, scatterPositions, gatherVelocities, scatterVelocities, gatherForces, carry;
    /** Positions to set, as OpenMM wraps them; and those that `proposal` holds: an accepted proposal is on the device already. */
    vector<double> shifted, uploaded;
};

DeviceParticles::DeviceParticles(ContextImpl& context, ComputeContext& compute, const vector<int>& particles)
    : MovedParticles(particles), context(context), compute(compute), slots(particles.size(), -1) {
    ContextSelector selector(compute);
    const int n = particles.size(), stride = compute.getPaddedNumAtoms();
    const bool wide = compute.getUseDoublePrecision() || compute.getUseMixedPrecision();
    slotArray = array(n, sizeof(int), "modeJumpSlots");
    numbers = array(3 * n, wide ? sizeof(double) : sizeof(float), "modeJumpNumbers");
    proposal = likeness(*numbers, "modeJumpProposal");
    savedPosq = likeness(compute.getPosq(), "modeJumpPosq");
    savedForces = likeness(compute.getLongForceBuffer(), "modeJumpForces");
    if (compute.getUseMixedPrecision())
        savedCorrection = likeness(compute.getPosqCorrection(), "modeJumpPosqCorrection");
    ComputeProgram program = compute.compileProgram(SOURCE);
    gatherPositions = kernelOnPositions(program, "gatherPositions", *numbers);
    scatterPositions = kernelOnPositions(program, "scatterPositions", *proposal);
    gatherVelocities = kernelOnVelocities(program, "gatherVelocities");
    scatterVelocities = kernelOnVelocities(program, "scatterVelocities");
    gatherForces = program->createKernel("gatherForces");
    gatherForces->addArg(n);
    gatherForces->addArg(stride);
    gatherForces->addArg(*slotArray);
    gatherForces->addArg(*numbers);
    gatherForces->addArg(compute.getLongForceBuffer());
    carry = program->createKernel("carryVelocities");
    carry->addArg(compute.getNumAtoms());
    carry->addArg(stride);
    carry->addArg();
    carry->addArg(*savedForces);
    carry->addArg(compute.getLongForceBuffer());
    carry->addArg(compute.getVelm());
}

unique_ptr<ArrayInterface> DeviceParticles::array(size_t size, int elementSize, const string& name) {
    unique_ptr<ArrayInterface> result(compute.createArray());
    result->initialize(compute, size, elementSize, name);
    return result;
}

unique_ptr<ArrayInterface> DeviceParticles::likeness(ArrayInterface& other, const string& name) {
    return array(other.getSize(), other.getElementSize(), name);
}

ComputeKernel DeviceParticles::kernelOnPositions(ComputeProgram program, const string& name, ArrayInterface& x) {
    ComputeKernel kernel = program->createKernel(name);
    kernel->addArg(static_cast<int>(particles.size()));
    kernel->addArg(*slotArray);
    kernel->addArg(x);
    kernel->addArg(compute.getPosq());
    if (compute.getUseMixedPrecision())
        kernel->addArg(compute.getPosqCorrection());
    return kernel;
}

ComputeKernel DeviceParticles::kernelOnVelocities(ComputeProgram program, const string& name) {
    ComputeKernel kernel = program->createKernel(name);
    kernel->addArg(static_cast<int>(particles.size()));
    kernel->addArg(*slotArray);
    kernel->addArg(*numbers);
    kernel->addArg(compute.getVelm());
    return kernel;
}

/** Updates the slots: OpenMM may have reordered the atoms after a step. */
void DeviceParticles::findSlots() {
    const vector<int>& order = compute.getAtomIndex();
    const auto lies = [&](int slot, int particle) { return slot >= 0 && order[slot] == particle; };
    if (equal(slots.begin(), slots.end(), particles.begin(), lies))
        return;
    vector<int> where(order.size());
    for (size_t slot = 0; slot < order.size(); slot++)
        where[order[slot]] = slot;
    for (size_t i = 0; i < slots.size(); i++)
        slots[i] = where[particles[i]];
    slotArray->upload(slots);
}

/** Offset that OpenMM has added to the position of particle i to wrap whole molecules into the box. */
Vec3 DeviceParticles::cellOf(size_t i) const {
    Vec3 box[3];
    compute.getPeriodicBoxVectors(box[0], box[1], box[2]);
    const mm_int4 cell = compute.getPosCellOffsets()[slots[i]];
    return box[0] * cell.x + box[1] * cell.y + box[2] * cell.z;
}

void DeviceParticles::save() {
    ContextSelector selector(compute);
    findSlots();
    compute.getPosq().copyTo(*savedPosq);
    if (savedCorrection)
        compute.getPosqCorrection().copyTo(*savedCorrection);
}

void DeviceParticles::restore() {
    ContextSelector selector(compute);
    savedPosq->copyTo(compute.getPosq());
    if (savedCorrection)
        savedCorrection->copyTo(compute.getPosqCorrection());
    Notice::of(context.getIntegrator());
}

void DeviceParticles::getPositions(vector<double>& x) {
    ContextSelector selector(compute);
    gatherPositions->execute(particles.size());
    numbers->download(x, true);
    for (size_t i = 0; i < particles.size(); i++) {
        const Vec3 cell = cellOf(i);
        for (int k = 0; k < 3; k++)
            x[3 * i + k] -= cell[k];
    }
}

void DeviceParticles::setPositions(const vector<double>& x) {
    ContextSelector selector(compute);
    shifted = x;
    for (size_t i = 0; i < particles.size(); i++) {
        const Vec3 cell = cellOf(i);
        for (int k = 0; k < 3; k++)
            shifted[3 * i + k] += cell[k];
    }
    if (shifted != uploaded) {
        uploaded.clear();
        proposal->upload(shifted, true);
        uploaded = shifted;
    }
    scatterPositions->execute(particles.size());
    context.computeVirtualSites();
    Notice::of(context.getIntegrator());
}

void DeviceParticles::getVelocities(vector<double>& v) {
    ContextSelector selector(compute);
    gatherVelocities->execute(particles.size());
    numbers->download(v, true);
}

void DeviceParticles::setVelocities(const vector<double>& v) {
    ContextSelector selector(compute);
    numbers->upload(v, true);
    scatterVelocities->execute(particles.size());
}

void DeviceParticles::getForces(vector<double>& f) {
    ContextSelector selector(compute);
    gatherForces->execute(particles.size());
    numbers->download(f, true);
}

void DeviceParticles::saveForces() {
    ContextSelector selector(compute);
    compute.getLongForceBuffer().copyTo(*savedForces);
}

void DeviceParticles::carryVelocities(double time) {
    ContextSelector selector(compute);
    if (numbers->getElementSize() == sizeof(double))
        carry->setArg(2, time);
    else
        carry->setArg(2, static_cast<float>(time));
    carry->execute(compute.getNumAtoms());
}

} // namespace

unique_ptr<MovedParticles> particlesOnDevice(ContextImpl& context, const vector<int>& particles) {
    ComputeContext* compute = computeContextOf(context);
    return compute == nullptr ? nullptr : make_unique<DeviceParticles>(context, *compute, particles);
}

bool inCudaContext(ContextImpl& context, const function<void()>& body) {
    ComputeContext* compute = computeContextOf(context);
    if (compute == nullptr || context.getPlatform().getName() != "CUDA")
        return false;
    ContextSelector selector(*compute);
    body();
    return true;
}

} // namespace ModeJumpPlugin

#endif
