// Exact scalar half-precision conversions; the namespace is unnamed for the reason that masked_mean_pool.h gives.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(diverseevol::BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float to_float(diverseevol::Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000U) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1FU;
  const uint32_t fraction = value.bits & 0x3FFU;
  if (exponent == 0x1FU) return from_bits(sign | 0x7F800000U | (fraction << 13));
  if (exponent != 0) return from_bits(sign | ((exponent + 112U) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24F;  // subnormal: exact in float32
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace
