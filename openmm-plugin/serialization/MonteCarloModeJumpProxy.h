#ifndef MODEJUMP_MONTECARLOMODEJUMPPROXY_H_
#define MODEJUMP_MONTECARLOMODEJUMPPROXY_H_

#include "openmm/serialization/SerializationProxy.h"

namespace ModeJumpPlugin {

/** MonteCarloModeJump to XML and back: the model's path and hash, or the model itself in base64. */
class MonteCarloModeJumpProxy : public OpenMM::SerializationProxy {
public:
    MonteCarloModeJumpProxy();
    void serialize(const void* object, OpenMM::SerializationNode& node) const override;
    void* deserialize(const OpenMM::SerializationNode& node) const override;
};

} // namespace ModeJumpPlugin

#endif
