//! Map values that other CPUs may be reading or writing, word by word.

/// Words of a map value that other CPUs may be reading or writing. Each word is read and written
/// whole; what spans several words is protected by the protocols below.
#[derive(Clone, Copy)]
pub struct Words<const N: usize>(*mut u64);

impl<const N: usize> Words<N> {
    /// `T` is a map value type that consists of `N` words.
    #[inline(always)]
    pub const fn of<T>(value: *mut T) -> Self {
        const { assert!(size_of::<T>() == N * 8 && align_of::<T>() == 8) };
        Self(value.cast())
    }

    #[inline(always)]
    pub fn get<const INDEX: usize>(self) -> u64 {
        const { assert!(INDEX < N) };
        // SAFETY: the pointer came from a lookup of this map, so the value is readable while the
        // program runs; the index is in bounds and the word aligned, as asserted.
        unsafe { self.0.add(INDEX).read_volatile() }
    }

    /// The same with an index that is known when the program is compiled, but no constant of its own.
    #[inline(always)]
    pub fn at(self, index: usize) -> u64 {
        // SAFETY: as in `get`; callers name words of the value's own layout, and the verifier checks
        // the offset.
        unsafe { self.0.add(index).read_volatile() }
    }

    /// As [`Self::at`], for writing.
    #[inline(always)]
    pub fn put_at(self, index: usize, word: u64) {
        // SAFETY: as in `at`; map values are plain data that programs may write.
        unsafe { self.0.add(index).write_volatile(word) }
    }

    #[inline(always)]
    pub fn set<const INDEX: usize>(self, word: u64) {
        const { assert!(INDEX < N) };
        // SAFETY: as in `get`; map values are plain data that programs may write.
        unsafe { self.0.add(INDEX).write_volatile(word) }
    }
}
