// Base64 (RFC 4648).
#ifndef MODEJUMP_BASE64_H_
#define MODEJUMP_BASE64_H_

#include "openmm/OpenMMException.h"

#include <cstdint>
#include <string>

namespace ModeJumpPlugin {

inline const std::string& base64Alphabet() {
    static const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    return alphabet;
}

inline std::string toBase64(const std::string& bytes) {
    std::string text;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        const size_t left = bytes.size() - i;
        uint32_t word = 0;
        for (size_t k = 0; k < 3; k++)
            word = word << 8 | (k < left ? static_cast<uint8_t>(bytes[i + k]) : 0);
        for (size_t k = 0; k < 4; k++)
            text += k <= left ? base64Alphabet()[word >> (18 - 6 * k) & 63] : '=';
    }
    return text;
}

inline std::string fromBase64(const std::string& text) {
    std::string bytes;
    uint32_t word = 0;
    int bits = 0;
    for (char c : text.substr(0, text.find('='))) {
        const size_t value = base64Alphabet().find(c);
        if (value == std::string::npos)
            throw OpenMM::OpenMMException("MonteCarloModeJump: the embedded model is not valid base64");
        word = word << 6 | static_cast<uint32_t>(value);
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            bytes += static_cast<char>(word >> bits & 255);
        }
    }
    return bytes;
}

} // namespace ModeJumpPlugin

#endif
