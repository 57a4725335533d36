#define EDGEPEFT_ISA avx512
#define EDGEPEFT_WIDTH 16
#include "low_rank_body.hpp"
