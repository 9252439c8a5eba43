// The two opaque CUDA types that TensorRT's headers mention, so that no CUDA toolkit is needed.
// They name the same structures as CUDA's own header, hence the same ABI. Nothing else belongs here.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
