#ifndef MODEJUMP_MONTECARLOMODEJUMPPROXY_H_
#define MODEJUMP_MONTECARLOMODEJUMPPROXY_H_

#include "openmm/serialization/SerializationProxy.h"

namespace ModeJumpPlugin {

/** Serialises MonteCarloModeJump to XML and back: the path and hash of the model, or the model itself in base64. */
class MonteCarloModeJumpProxy : public OpenMM::SerializationProxy {
public:
    MonteCarloModeJumpProxy();
    void serialize(const void* object, OpenMM::SerializationNode& node) const override;
    void* deserialize(const OpenMM::SerializationNode& node) const override;
};

} // namespace ModeJumpPlugin

#endif
