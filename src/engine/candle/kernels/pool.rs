//! A few threads that share the loops of one thread.
//!
//! A forward has some hundreds of loops of ten to a thousand microseconds each, so starting one must cost about a
//! microsecond: the helpers spin for a while after each loop and only then sleep. A loop never waits for a helper that
//! is still asleep when its work is done.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a helper looks for work before it sleeps: some 100 µs.
const SPINS: usize = 2_000;
/// How often the caller looks whether the helpers are done before it gives way to other threads.
const PATIENCE: usize = 1_000;

/// In [`State::word`]: no helper may join any more.
const CLOSED: u64 = 1 << 31;
/// In [`State::word`]: one loop further.
const EPOCH: u64 = 1 << 32;

/// The loop's body, without its lifetime: it is only called while [`Pool::run`] waits.
type Body = *const (dyn Fn(usize) + Sync);

/// What caller and helpers share.
struct State {
    /// The loop's number (upper half), whether it is closed, and how many helpers are in it.
    word: AtomicU64,
    /// The body and how many tasks there are.
    job: UnsafeCell<Option<(Body, usize)>>,
    /// The next task.
    next: AtomicUsize,
    /// Helpers that sleep or are about to.
    asleep: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only part that is not Sync by itself. It is written only by the one caller (`busy` lets in only
// one) while the word is closed and without helpers, and read only by a helper that joined while the word was open:
// the exchange that joins acquires what the opening store released. The body is Sync and outlives the loop.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Send for State {}

/// A fixed number of threads, the calling one among them.
pub(crate) struct Pool {
    state: Arc<State>,
    busy: AtomicBool,
    helpers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of so many threads; the caller of [`Pool::run`] is one of them.
    ///
    /// # Errors
    /// Where the system gives no more threads.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let state = Arc::new(State {
            word: AtomicU64::new(CLOSED),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        // Built first, so that an error further on stops the helpers that are there already.
        let mut pool = Self {
            state,
            busy: AtomicBool::new(false),
            helpers: Vec::new(),
        };
        for number in 1..threads {
            let state = Arc::clone(&pool.state);
            pool.helpers.push(
                std::thread::Builder::new()
                    .name(format!("limn-model-{number}"))
                    .spawn(move || help(&state))?,
            );
        }
        Ok(pool)
    }

    /// How many threads share a loop.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `body` once for each of `0..tasks`, in any order, on any of the threads, and waits for all of them.
    ///
    /// From within a loop, or while another thread has one, the tasks run on the calling thread alone.
    ///
    /// # Panics
    /// Where a task panics, with its payload; tasks not begun by then are left out.
    pub(crate) fn run(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        let alone = tasks < 2 || self.helpers.is_empty();
        if alone || self.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(body);
            return;
        }
        let state = &*self.state;
        let body: &(dyn Fn(usize) + Sync) = &body;
        // SAFETY: only the lifetime changes. This function does not return before the loop is closed and left by every
        // helper, and no helper touches the body after it has left.
        let erased: Body = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Body>(body) };
        // SAFETY: the word is closed and no helper is in (the last loop saw to it), so nobody reads.
        unsafe { *state.job.get() = Some((erased, tasks)) };
        state.next.store(0, Ordering::Relaxed);
        let epoch = (state.word.load(Ordering::Relaxed) & !(EPOCH - 1)).wrapping_add(EPOCH);
        state.word.store(epoch, Ordering::SeqCst);
        // Either a helper that goes to sleep is counted here, or it sees the new word before it sleeps (both SeqCst).
        if state.asleep.load(Ordering::SeqCst) > 0 {
            drop(state.lock.lock().unwrap_or_else(PoisonError::into_inner));
            state.wake.notify_all();
        }
        work(state, body, tasks);
        state.word.fetch_or(CLOSED, Ordering::AcqRel);
        let mut looks = 0;
        while state.word.load(Ordering::Acquire) & (CLOSED - 1) != 0 {
            looks += 1;
            if looks < PATIENCE {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = state
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Splits `0..len` into parts of at least `least`, about four for each thread, and calls `body` with each part.
    pub(crate) fn split(
        &self,
        len: usize,
        least: usize,
        body: impl Fn(std::ops::Range<usize>) + Sync,
    ) {
        let size = len.div_ceil(self.threads() * 4).max(least).max(1);
        self.run(len.div_ceil(size), |part| {
            body(part * size..len.min((part + 1) * size));
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        drop(
            self.state
                .lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.state.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches what its tasks throw; it has nothing to tell.
            let _ = helper.join();
        }
    }
}

/// Takes tasks until there are none. A panic is kept for the caller, and ends the loop.
fn work(state: &State, body: &(dyn Fn(usize) + Sync), tasks: usize) {
    let worked = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let task = state.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            body(task);
        }
    }));
    if let Err(payload) = worked {
        // Half the range, so that the additions of the others cannot wrap around to a task.
        state.next.store(usize::MAX / 2, Ordering::Relaxed);
        let mut kept = state.panic.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert(payload);
    }
}

/// A helper's life.
fn help(state: &State) {
    let mut done = 0;
    let mut looks = 0;
    loop {
        let word = state.word.load(Ordering::SeqCst);
        let epoch = word & !(EPOCH - 1);
        if word & CLOSED == 0 && epoch != done {
            if state
                .word
                .compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                // SAFETY: joined while open, so the job is written and stays until this helper leaves.
                let job = unsafe { *state.job.get() };
                if let Some((body, tasks)) = job {
                    // SAFETY: `run` keeps the body alive until this helper has left.
                    work(state, unsafe { &*body }, tasks);
                }
                state.word.fetch_sub(1, Ordering::Release);
                done = epoch;
                looks = 0;
            }
            continue;
        }
        if state.stop.load(Ordering::SeqCst) {
            return;
        }
        looks += 1;
        if looks < SPINS {
            std::hint::spin_loop();
            continue;
        }
        looks = 0;
        let mut guard = state.lock.lock().unwrap_or_else(PoisonError::into_inner);
        state.asleep.fetch_add(1, Ordering::SeqCst);
        loop {
            let word = state.word.load(Ordering::SeqCst);
            let work = word & CLOSED == 0 && word & !(EPOCH - 1) != done;
            if work || state.stop.load(Ordering::SeqCst) {
                break;
            }
            guard = state
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, |task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_whatever_the_numbers() {
        for threads in 1..5 {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                for _ in 0..20 {
                    assert_eq!(counts(&pool, tasks), vec![1; tasks]);
                }
            }
        }
    }

    #[test]
    fn parts_cover_the_range_once() {
        let pool = Pool::new(3).unwrap();
        for (len, least) in [(0, 1), (1, 1), (100, 1), (101, 7), (5, 100), (10, 0)] {
            let seen = Mutex::new(vec![0; len]);
            pool.split(len, least, |part| {
                assert!(!part.is_empty());
                for i in part {
                    seen.lock().unwrap()[i] += 1;
                }
            });
            assert_eq!(seen.into_inner().unwrap(), vec![1; len]);
        }
    }

    #[test]
    fn helpers_take_part() {
        let pool = Pool::new(2).unwrap();
        let (meet, met) = (Mutex::new(0), Condvar::new());
        // Neither task ends before both have begun: only two threads can do that.
        pool.run(2, |_| {
            let mut here = meet.lock().unwrap();
            *here += 1;
            met.notify_all();
            while *here < 2 {
                here = met.wait(here).unwrap();
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        for round in 0..50 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(10, |task| assert!(task != round % 10, "task {task} fell"));
            }));
            let text = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(text, format!("task {} fell", round % 10));
            assert_eq!(counts(&pool, 10), vec![1; 10]);
        }
    }

    #[test]
    fn a_loop_within_a_loop_and_two_callers_at_once_are_served() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(4, |_| {
                            pool.run(5, |_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * 50 * 20);
    }

    #[test]
    fn dropping_joins_sleeping_and_spinning_helpers() {
        for rest in [0, 1, 20] {
            let (tell, told) = channel();
            std::thread::spawn(move || {
                let pool = Pool::new(4).unwrap();
                counts(&pool, 100);
                // Long enough for some to fall asleep, or not: both must end.
                for _ in 0..rest * SPINS {
                    std::hint::spin_loop();
                }
                let state = Arc::downgrade(&pool.state);
                drop(pool);
                tell.send(state.strong_count()).unwrap();
            });
            assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(0));
        }
    }

    #[test]
    fn sleeping_helpers_wake_for_work() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            while pool.state.asleep.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let (meet, met) = (Mutex::new(0), Condvar::new());
            pool.run(2, |_| {
                let mut here = meet.lock().unwrap();
                *here += 1;
                met.notify_all();
                while *here < 2 {
                    here = met.wait(here).unwrap();
                }
            });
        }
    }
}
