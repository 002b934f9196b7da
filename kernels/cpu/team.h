// Threads that share the work of a job, phase by phase, and never wait for one that is not there.
#pragma once
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace stride {

// What the threads of one job share. A phase hands out the numbers 0..count-1, each to whoever asks first; a thread goes
// on when all are done, by whomever. A thread that has lost its processor between two phases holds up nobody: it finds
// them done when it comes back. Which thread does what never changes a result: every number is a piece of output.
class Team {
public:
    explicit Team(int64_t phases) : phases_(phases) {}

    // `phase` is the calling thread's own count of phases, from 0.
    template <class Work>
    void share(int& phase, int64_t count, int64_t chunk, Work work) {
        Phase& now = phases_[phase++];
        for (;;) {
            const int64_t begin = now.next.fetch_add(chunk, std::memory_order_relaxed);
            if (begin >= count) break;
            const int64_t end = std::min(begin + chunk, count);
            for (int64_t i = begin; i < end; ++i) work(i);
            now.done.fetch_add(end - begin, std::memory_order_release);
        }
        for (int turns = 0; now.done.load(std::memory_order_acquire) < count; ++turns) {
            _mm_pause();
            if (turns % 256 == 255) sched_yield();
        }
    }

private:
    struct alignas(64) Phase {
        std::atomic<int64_t> next{0}, done{0};
    };
    std::vector<Phase> phases_;
};

// Runs the body of an entry point: 0, or 1 when memory ran out. Nothing may be thrown into C, and jobs do not allocate.
template <class Body>
int guarded(Body body) {
    try {
        body();
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// The process's own threads, asleep between jobs.
class Pool {
public:
    static Pool& shared() {
        static Pool* pool = new Pool;  // never destroyed: its threads may outlive main
        return *pool;
    }

    // Calls job(thread) in this thread and in up to `threads - 1` others, which come as soon as they can, or not at all.
    void run(int threads, const std::function<void(int)>& job) {
        std::lock_guard<std::mutex> one(running_);
        while (workers_ < threads - 1 && !refused_) {
            try {
                std::thread([this, id = workers_ + 1] { serve(id); }).detach();
                ++workers_;
            } catch (const std::system_error&) {
                refused_ = true;  // those that are there do the work
            }
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            wanted_ = threads - 1;
            ++epoch_;
        }
        if (threads > 1) arrived_.notify_all();
        job(0);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = nullptr;
        }
        while (inside_.load(std::memory_order_acquire) > 0) {
            _mm_pause();
            sched_yield();
        }
    }

private:
    std::mutex running_, mutex_;
    std::condition_variable arrived_;
    const std::function<void(int)>* job_ = nullptr;
    uint64_t epoch_ = 0;
    int wanted_ = 0, workers_ = 0;
    bool refused_ = false;
    std::atomic<int> inside_{0};

    void serve(int id) {
        uint64_t seen = 0;
        for (;;) {
            const std::function<void(int)>* job;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                arrived_.wait(lock, [&] { return epoch_ != seen && job_ != nullptr && id <= wanted_; });
                seen = epoch_;
                job = job_;
                inside_.fetch_add(1, std::memory_order_relaxed);
            }
            (*job)(id);
            inside_.fetch_sub(1, std::memory_order_release);
        }
    }
};

}  // namespace stride
