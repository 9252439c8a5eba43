// Says why something failed, to TensorRT's logger.
// The only place that knows how messages leave the plugins.
#pragma once

#include "status.h"

#include <NvInferRuntime.h>

namespace longllava
{

//! Where the logger is asked for; TensorRT calls this when it loads the library.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Report a failure, if it is one; without a logger, to stderr. Returns TensorRT's status code:
//! 0 is success. TensorRT passes the code, but no text, on to the application's error recorder.
int32_t report(Status const& status) noexcept;

} // namespace longllava
