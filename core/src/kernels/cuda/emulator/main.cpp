// Runs the kernels for a test: reads launches from standard input, writes what they left in their
// outputs to standard output. Every launch runs twice, its threads and blocks in opposite orders, and
// must leave the same bytes.
//
// A launch is the kernel's name, its grid, its threads in a block and its arguments, all numbers
// little-endian 32 bits; a buffer is its element's tag, whether the kernel may write it, its length in
// bytes and its bytes. The answer is the bytes of what may be written, in order.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda_runtime.hpp"
#include "tensor_core.hpp"
// After what stands for the card.
#include "../kernels.cu"

namespace {

constexpr uint32_t F32 = 0, BF16 = 1, U32 = 2, NUMBER = 3, REAL = 4;

// Bytes that end where memory ends, so that reading or writing past them ends the process.
class Buffer {
   public:
    explicit Buffer(const std::vector<char> &bytes) : len_(bytes.size()) {
        size_t page = sysconf(_SC_PAGESIZE);
        size_t room = (len_ + page - 1) / page * page;
        mapped_ = room + page;
        map_ = static_cast<char *>(
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (map_ == MAP_FAILED || mprotect(map_ + room, page, PROT_NONE) != 0) {
            emulator::fail("no memory for a buffer");
        }
        start_ = map_ + room - len_;
        if (len_ > 0) memcpy(start_, bytes.data(), len_);
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() { munmap(map_, mapped_); }

    char *start() const { return start_; }
    std::vector<char> bytes() const { return std::vector<char>(start_, start_ + len_); }

   private:
    size_t len_, mapped_;
    char *map_, *start_;
};

struct Argument {
    uint32_t kind;
    bool writable = false;
    std::vector<char> bytes;
    Buffer *buffer = nullptr;
};

template <class P>
constexpr uint32_t element_kind() {
    using T = std::remove_const_t<P>;
    if (std::is_same_v<T, float>) return F32;
    if (std::is_same_v<T, __nv_bfloat16>) return BF16;
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, __nv_bfloat16> ||
                  std::is_same_v<T, unsigned>);
    return U32;
}

// An argument as the parameter that the kernel declares; another kind is an error of the launch.
template <class P>
P as(const Argument &argument) {
    if constexpr (std::is_pointer_v<P>) {
        using T = std::remove_pointer_t<P>;
        if (argument.kind != element_kind<T>()) emulator::fail("a buffer of other elements");
        if (!std::is_const_v<T> && !argument.writable) emulator::fail("a buffer to read is written");
        return reinterpret_cast<P>(argument.buffer->start());
    } else {
        static_assert(sizeof(P) == 4);
        if (argument.kind != (std::is_same_v<P, float> ? REAL : NUMBER)) {
            emulator::fail("a number of another kind");
        }
        P value;
        memcpy(&value, argument.bytes.data(), 4);
        return value;
    }
}

struct Kernel {
    const char *name;
    std::function<std::function<void()>(const std::vector<Argument> &)> bind;
};

template <class... P, size_t... I>
std::function<void()> bound(void (*kernel)(P...), const std::vector<Argument> &arguments,
                            std::index_sequence<I...>) {
    auto values = std::make_tuple(as<P>(arguments[I])...);
    return [=] { std::apply(kernel, values); };
}

template <class... P>
Kernel entry(const char *name, void (*kernel)(P...)) {
    return {name, [=](const std::vector<Argument> &arguments) {
                if (arguments.size() != sizeof...(P)) emulator::fail("a wrong number of arguments");
                return bound(kernel, arguments, std::index_sequence_for<P...>());
            }};
}

#define ONE(NAME) entry(#NAME, NAME)
#define BOTH(NAME) ONE(NAME##_f32), ONE(NAME##_bf16)

const Kernel KERNELS[] = {
    BOTH(rms_norm),
    BOTH(rms_norm_back),
    BOTH(swiglu),
    BOTH(swiglu_back),
    BOTH(rotate),
    BOTH(score),
    BOTH(adapt),
    BOTH(adapt_gradient),
    ONE(sum_chunks_f32),
    BOTH(attend_head64),
    BOTH(attend_head128),
    BOTH(attend_delta),
    BOTH(attend_queries_back_head64),
    BOTH(attend_queries_back_head128),
    BOTH(attend_keys_back_head64),
    BOTH(attend_keys_back_head128),
};

void read_bytes(void *to, size_t len) {
    if (len > 0 && fread(to, 1, len, stdin) != len) exit(feof(stdin) ? 0 : 4);
}

uint32_t read_number() {
    uint32_t value;
    read_bytes(&value, 4);
    return value;
}

// What the launch leaves in what it may write.
std::vector<std::vector<char>> launch(const Kernel &kernel, std::vector<Argument> arguments,
                                      bool backwards) {
    std::vector<Buffer *> buffers;
    for (Argument &argument : arguments) {
        if (argument.kind >= NUMBER) continue;
        buffers.push_back(argument.buffer = new Buffer(argument.bytes));
    }
    emulator::body = kernel.bind(arguments);
    unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    for (unsigned n = 0; n < blocks; n++) {
        unsigned i = backwards ? blocks - 1 - n : n;
        blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
        emulator::run_block(blockDim.x, backwards);
    }
    std::vector<std::vector<char>> left;
    for (const Argument &argument : arguments) {
        if (argument.kind < NUMBER && argument.writable) left.push_back(argument.buffer->bytes());
    }
    for (Buffer *buffer : buffers) delete buffer;
    return left;
}

}  // namespace

int main() {
    for (;;) {
        std::string name(read_number(), ' ');
        read_bytes(name.data(), name.size());
        gridDim = {read_number(), 0, 0};
        gridDim.y = read_number();
        gridDim.z = read_number();
        blockDim = {read_number(), 1, 1};
        std::vector<Argument> arguments(read_number());
        for (Argument &argument : arguments) {
            argument.kind = read_number();
            uint32_t len = 4;
            if (argument.kind < NUMBER) {
                argument.writable = read_number() != 0;
                len = read_number();
            }
            argument.bytes.resize(len);
            read_bytes(argument.bytes.data(), len);
        }
        auto known = std::find_if(std::begin(KERNELS), std::end(KERNELS),
                                  [&](const Kernel &kernel) { return kernel.name == name; });
        if (known == std::end(KERNELS)) emulator::fail("no such kernel");
        if (blockDim.x == 0 || blockDim.x > emulator::MOST_THREADS || blockDim.x % emulator::WARP) {
            emulator::fail("a block is whole warps, and not too many");
        }
        auto left = launch(*known, arguments, false);
        if (left != launch(*known, arguments, true)) emulator::fail("a race between threads");
        for (const std::vector<char> &bytes : left) fwrite(bytes.data(), 1, bytes.size(), stdout);
        fflush(stdout);
    }
}
