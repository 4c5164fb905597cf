//! Where randomness and time come from in a simulation: its seed, and its own clock.
//!
//! The standard library's hash maps, tokio's choice of a branch or of whom to wake first, and new ids all begin with `getrandom`.
//! A thread with a seed gets the numbers that follow from it; every other thread of the program gets the system's. So it is with
//! the time of the standard library, which h2 forgets streams by: it is the one that all hosts have reached.

use std::cell::Cell;
use std::mem::MaybeUninit;

thread_local! {
    static SEEDED: Cell<Option<Rng>> = const { Cell::new(None) };
}

/// This thread's randomness follows from `seed` from now on. Legal before the thread has made its first hash map or id.
pub fn seed_thread(seed: u64) {
    // Also what makes the linker take the function below for libc's.
    std::hint::black_box(getrandom as unsafe extern "C" fn(*mut u8, usize, u32) -> isize);
    std::hint::black_box(clock_gettime as unsafe extern "C" fn(i32, *mut Timespec) -> i32);
    SEEDED.set(Some(Rng::new(seed)));
}

/// In the place of libc's.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: it is the contract of getrandom(2) that `length` bytes can be written at `buffer`, and nothing is read there. A pointer
    // that is not null is good for no bytes at all, and those who ask for none do not pass null.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), length) };
    let Some(mut rng) = SEEDED.get() else {
        let flags = rustix::rand::GetRandomFlags::empty();
        return rustix::rand::getrandom(bytes, flags).map_or(-1, |(filled, _)| filled.len().cast_signed());
    };
    for chunk in bytes.chunks_mut(8) {
        for (to, from) in chunk.iter_mut().zip(rng.next().to_le_bytes()) {
            to.write(from);
        }
    }
    SEEDED.set(Some(rng));
    length.cast_signed()
}

/// As in C, on 64-bit Linux.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

/// In the place of libc's: any clock of a simulation's thread is the simulated one.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: i32, to: *mut Timespec) -> i32 {
    let now = if SEEDED.get().is_some() {
        let now = crate::clock::world();
        Timespec { seconds: now.as_secs().cast_signed(), nanos: now.subsec_nanos().into() }
    } else {
        let clock = match clock {
            0 => rustix::time::ClockId::Realtime,
            4 => rustix::time::ClockId::MonotonicRaw,
            7 => rustix::time::ClockId::Boottime,
            _ => rustix::time::ClockId::Monotonic,
        };
        let now = rustix::time::clock_gettime(clock);
        Timespec { seconds: now.tv_sec, nanos: now.tv_nsec }
    };
    // SAFETY: it is the contract of clock_gettime(2) that a timespec can be written at `to`.
    unsafe { to.write(now) };
    0
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): what a simulation decides by.
#[derive(Clone, Copy, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Another seed, other numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of its own, which takes nothing from this one later.
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// From `low` up to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// `true` in so many of a hundred cases.
    pub fn percent(&mut self, of_hundred: u64) -> bool {
        self.below(100) < of_hundred
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("less than a length")]
    }
}
