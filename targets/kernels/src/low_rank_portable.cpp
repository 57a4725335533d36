#define EDGEPEFT_ISA portable
#define EDGEPEFT_WIDTH 8
#include "low_rank_body.hpp"
