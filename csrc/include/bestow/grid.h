// How many blocks a launch has, in up to three directions.
#pragma once
#include <cstdint>

namespace bestow {

struct Grid {
  int64_t x, y, z;
  Grid(int64_t x, int64_t y = 1, int64_t z = 1) : x(x), y(y), z(z) {}  // a plain number will do
  int64_t blocks() const { return x * y * z; }
};

}  // namespace bestow
