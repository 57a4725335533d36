#define EDGEPEFT_ISA avx2
#define EDGEPEFT_WIDTH 8
#include "low_rank_body.hpp"
