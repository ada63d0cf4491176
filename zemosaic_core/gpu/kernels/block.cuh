// The threads of a block at one piece of work: each does its part between two barriers, and what lives longer lies in
// shared memory. On the host one call does the parts of all threads, one after the other.
#ifdef ZM_HOST
#define ONE_CALL_PER_BLOCK if (threadIdx.x) return;
#define EACH_THREAD(t) for (int t = 0; t < THREADS; ++t)
#define BARRIER
#else
#define ONE_CALL_PER_BLOCK
#define EACH_THREAD(t) for (int t = threadIdx.x, again = 1; again; again = 0)
#define BARRIER __syncthreads();
#endif
