// Runs an operator on tensors: checks, plan, launches. What plugins and the C interface share.
// Must not know TensorRT.
#pragma once

#include "operator.h"

namespace longllava
{

//! Whether ranks and dimensions fit an operator and its kernels; learns the sizes.
//! @param shapes The inputs, and the outputs too where there are as many as both.
Status checkShapes(Operator const& op, TensorShape const* shapes, int32_t count, Sizes& sizes);

//! Whether this library holds every kernel that the operator may need.
Status checkKernels(Operator const& op, ElementType type, Sizes const& sizes);

//! Load every kernel that the operator may need into the current context.
Status preload(Operator const& op, ElementType type, Sizes const& sizes);

//! Launch an operator; allocates nothing unless it fails.
//! @param shapes The inputs, then the outputs.
Status enqueue(Operator const& op, TensorShape const* shapes, void const* const* inputs,
    void* const* outputs, void* workspace, CUstream_st* stream);

} // namespace longllava
