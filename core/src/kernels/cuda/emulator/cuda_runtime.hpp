// What a kernel finds on a card, on the processor: its thread's place, barriers, shuffles.
//
// A block runs on one thread of the machine; its own threads are contexts that run one at a time until
// they end or wait at a barrier. Which goes first is given by the launch: results that depend on it are
// races. A barrier that some threads of its block or warp never reach ends the process with a message.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __restrict__
// One block at a time: what its threads share can be static.
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr unsigned WARP = 32;
// Large enough for sixteen warps and for a value of any type that is shuffled.
constexpr unsigned MOST_THREADS = 512;
constexpr size_t STACK = 128 << 10;
constexpr size_t LARGEST = 64;

enum class State { Ready, AtWarp, AtBlock, Ended };

struct Thread {
    // Where it begins, if it has not yet, and where it goes on: jumps cost no system call.
    ucontext_t start;
    bool begun = false;
    jmp_buf at;
    State state;
    // Warp-wide exchanges so far: two sets of places are used in turn, so that one barrier is enough.
    unsigned exchanges;
};

inline std::vector<Thread> threads(MOST_THREADS);
inline std::vector<char> stacks(MOST_THREADS *STACK);
inline jmp_buf scheduler;
inline unsigned current;
inline std::function<void()> body;
alignas(LARGEST) inline unsigned char places[MOST_THREADS][2][LARGEST];

[[noreturn]] inline void fail(const char *what) {
    fprintf(stderr, "block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
    exit(3);
}

// What returns twice is a call of its own, so that its caller's variables stay what they are.

// Back to the scheduler, until it resumes the thread.
__attribute__((noinline)) inline void pause(Thread &thread) {
    if (_setjmp(thread.at) == 0) _longjmp(scheduler, 1);
}

// Runs the thread until it pauses.
__attribute__((noinline)) inline void resume(Thread &thread) {
    if (_setjmp(scheduler) != 0) return;
    if (thread.begun) _longjmp(thread.at, 1);
    thread.begun = true;
    setcontext(&thread.start);
}

inline void wait(State at) {
    threads[current].state = at;
    pause(threads[current]);
}

// A thread's life: a block after the other.
inline void entry() {
    for (;;) {
        body();
        wait(State::Ended);
    }
}

__attribute__((noinline)) inline void prepare(Thread &thread, char *stack) {
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = stack;
    thread.start.uc_stack.ss_size = STACK;
    makecontext(&thread.start, entry, 0);
}

// Lets waiting threads go on where all of a group wait for the same; whether any does.
inline bool release(unsigned first, unsigned end, State at) {
    unsigned waiting = 0;
    for (unsigned i = first; i < end; i++) waiting += threads[i].state == at;
    if (waiting < end - first) return false;
    for (unsigned i = first; i < end; i++) threads[i].state = State::Ready;
    return true;
}

inline void run_block(unsigned count, bool backwards) {
    for (unsigned i = 0; i < count; i++) {
        Thread &thread = threads[i];
        if (!thread.begun) prepare(thread, &stacks[i * STACK]);
        thread.state = State::Ready;
        thread.exchanges = 0;
    }
    for (;;) {
        bool any = false;
        for (unsigned n = 0; n < count; n++) {
            unsigned i = backwards ? count - 1 - n : n;
            if (threads[i].state != State::Ready) continue;
            any = true;
            current = i;
            threadIdx = {i, 0, 0};
            resume(threads[i]);
        }
        for (unsigned warp = 0; warp < count; warp += WARP) {
            any |= release(warp, warp + WARP < count ? warp + WARP : count, State::AtWarp);
        }
        any |= release(0, count, State::AtBlock);
        if (any) continue;
        for (unsigned i = 0; i < count; i++) {
            if (threads[i].state != State::Ended) fail("a barrier that not all threads reach");
        }
        return;
    }
}

// Gives every thread of the warp what each of them brings; `read(lane)` is that lane's.
template <class T>
struct Exchange {
    unsigned warp, turn;

    explicit Exchange(const T &value) {
        static_assert(sizeof(T) <= LARGEST);
        warp = current / WARP * WARP;
        turn = threads[current].exchanges++ % 2;
        new (places[current][turn]) T(value);
        wait(State::AtWarp);
    }

    const T &read(unsigned lane) const {
        return *reinterpret_cast<const T *>(places[warp + lane][turn]);
    }
};

inline unsigned lane() { return current % WARP; }

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::State::AtBlock); }

inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait(emulator::State::AtWarp); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::Exchange<T>(value).read(emulator::lane() ^ mask);
}

template <class T>
T __shfl_sync(unsigned, T value, int from) {
    return emulator::Exchange<T>(value).read(from % emulator::WARP);
}
