#include "Space.h"

#include "openmm/ATMForce.h"
#include "openmm/CMMotionRemover.h"
#include "openmm/CustomCVForce.h"
#include "openmm/CustomCentroidBondForce.h"
#include "openmm/CustomCompoundBondForce.h"
#include "openmm/CustomExternalForce.h"
#include "openmm/CustomManyParticleForce.h"

#include <regex>
#include <string>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

bool removesMomentum(const System& system) {
    for (int i = 0; i < system.getNumForces(); i++)
        if (dynamic_cast<const CMMotionRemover*>(&system.getForce(i)) != nullptr)
            return true;
    return false;
}

namespace {

/** Whether an expression names coordinates of particles: x1, y1, z1, x2 and so on. */
bool namesCoordinates(const string& expression) {
    static const regex coordinate("(^|[^A-Za-z0-9_])[xyz][1-9][0-9]*([^A-Za-z0-9_(]|$)");
    return regex_search(expression, coordinate);
}

/** Whether the energy of a Force, or of a Force that it contains, depends on the absolute positions of particles. */
bool dependsOnPlace(const Force& force) {
    if (auto external = dynamic_cast<const CustomExternalForce*>(&force))
        return external->getNumParticles() > 0;
    if (auto bond = dynamic_cast<const CustomCompoundBondForce*>(&force))
        return bond->getNumBonds() > 0 && namesCoordinates(bond->getEnergyFunction());
    if (auto bond = dynamic_cast<const CustomCentroidBondForce*>(&force))
        return bond->getNumBonds() > 0 && namesCoordinates(bond->getEnergyFunction());
    if (auto many = dynamic_cast<const CustomManyParticleForce*>(&force))
        return namesCoordinates(many->getEnergyFunction());
    if (auto cv = dynamic_cast<const CustomCVForce*>(&force)) {
        for (int i = 0; i < cv->getNumCollectiveVariables(); i++)
            if (dependsOnPlace(cv->getCollectiveVariable(i)))
                return true;
    }
    if (auto atm = dynamic_cast<const ATMForce*>(&force)) {
        for (int i = 0; i < atm->getNumForces(); i++)
            if (dependsOnPlace(atm->getForce(i)))
                return true;
    }
    return false;
}

} // namespace

bool isHeldInSpace(const System& system) {
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.getParticleMass(i) == 0 && !system.isVirtualSite(i))
            return true;
    for (int i = 0; i < system.getNumForces(); i++)
        if (dependsOnPlace(system.getForce(i)))
            return true;
    return false;
}

} // namespace ModeJumpPlugin
