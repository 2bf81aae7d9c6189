// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011), with keys and counters as in the core's streams (src/rng.rs).
#ifndef MODEJUMP_PHILOX_H_
#define MODEJUMP_PHILOX_H_

#include <array>
#include <cmath>
#include <cstdint>

namespace ModeJumpPlugin {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; round++) {
        if (round > 0)
            key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
        const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * counter[0];
        const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * counter[2];
        counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
                   static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    }
    return counter;
}

/** Random numbers of one velocity draw, or of one driven path: a function of (seed, step, replica), the use and the index alone. */
class VelocityStream {
public:
    /** Numbers of the core's streams for these uses. */
    static constexpr uint32_t VELOCITY = 4, RELAX = 18;
    VelocityStream(uint64_t seed, uint64_t step, uint64_t replica, uint32_t stream = VELOCITY)
        : key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, step(step),
          last((stream << 24) | static_cast<uint32_t>(replica & 0xFFFFFF)) {}

    /** Two independent standard normal numbers (Box-Muller). */
    std::array<double, 2> normals(uint32_t index) const {
        const auto word = words(index);
        const double u = uniform(word[0], word[1]), angle = 2 * M_PI * uniform(word[2], word[3]);
        const double radius = std::sqrt(-2 * std::log(u));
        return {radius * std::cos(angle), radius * std::sin(angle)};
    }

    /** A number uniform on (0, 1). */
    double uniform(uint32_t index) const {
        const auto word = words(index);
        return uniform(word[0], word[1]);
    }

private:
    std::array<uint32_t, 4> words(uint32_t index) const {
        return philox4x32({index, static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), last}, key);
    }
    static double uniform(uint32_t low, uint32_t high) {
        const uint64_t bits = static_cast<uint64_t>(high) << 32 | low;
        return (static_cast<double>(bits >> 12) + 0.5) / 4503599627370496.0;
    }
    std::array<uint32_t, 2> key;
    uint64_t step;
    uint32_t last;
};

} // namespace ModeJumpPlugin

#endif
