#include "Space.h"

#include "openmm/CMMotionRemover.h"
#include "openmm/CustomExternalForce.h"

using namespace OpenMM;

namespace ModeJumpPlugin {

bool removesMomentum(const System& system) {
    for (int i = 0; i < system.getNumForces(); i++)
        if (dynamic_cast<const CMMotionRemover*>(&system.getForce(i)) != nullptr)
            return true;
    return false;
}

bool isHeldInSpace(const System& system) {
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.getParticleMass(i) == 0 && !system.isVirtualSite(i))
            return true;
    for (int i = 0; i < system.getNumForces(); i++) {
        const auto external = dynamic_cast<const CustomExternalForce*>(&system.getForce(i));
        if (external != nullptr && external->getNumParticles() > 0)
            return true;
    }
    return false;
}

} // namespace ModeJumpPlugin
