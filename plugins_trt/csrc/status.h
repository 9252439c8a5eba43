// Success, or a message that says where, what was expected, what came, and what to do.
// Knows neither TensorRT nor CUDA. Success allocates nothing.
#pragma once

#include <sstream>
#include <string>
#include <utility>

namespace longllava
{

class [[nodiscard]] Status
{
public:
    Status() = default;

    //! Concatenate the parts of a message.
    template <typename... Parts>
    static Status failure(Parts const&... parts)
    {
        std::ostringstream text;
        (text << ... << parts);
        Status status;
        status.mMessage = text.str();
        return status;
    }

    bool ok() const noexcept
    {
        return mMessage.empty();
    }

    std::string const& message() const noexcept
    {
        return mMessage;
    }

private:
    std::string mMessage;
};

} // namespace longllava
