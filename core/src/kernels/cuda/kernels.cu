// All kernels, as one module.
#include "attention.cuh"
#include "cross_entropy.cuh"
#include "elementwise.cuh"
#include "grouped.cuh"
#include "norm.cuh"
