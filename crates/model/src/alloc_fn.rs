//! The functions that allocate and release heap blocks, of programs and of the kernel.

/// Which functions may release what a function allocated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AllocFamily {
    /// `malloc` and its relatives; released with `free` or `realloc`.
    Malloc,
    /// `operator new`; released with `operator delete`.
    New,
    /// `operator new[]`; released with `operator delete[]`.
    NewArray,
}

macro_rules! alloc_fns {
    (
        { $($(#[$doc:meta])* $variant:ident = $number:literal, $symbol:literal, $words:literal, $family:ident, $releases:literal;)* }
        kernel { $($(#[$kernel_doc:meta])* $kernel_variant:ident = $kernel_number:literal, $kernel_symbol:literal, $kernel_releases:literal;)* }
    ) => {
        /// A function of the allocator, by the symbol that the program called.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum AllocFn { $($(#[$doc])* $variant = $number,)* $($(#[$kernel_doc])* $kernel_variant = $kernel_number,)* }

        impl AllocFn {
            /// All functions of programs, by number.
            pub const ALL: &'static [AllocFn] = &[$(Self::$variant,)*];

            /// Those of the kernel: their numbers follow.
            pub const KERNEL: &'static [AllocFn] = &[$(Self::$kernel_variant,)*];

            /// The linker's name, such as `_Znwm`.
            pub fn symbol(self) -> &'static str {
                match self { $(Self::$variant => $symbol,)* $(Self::$kernel_variant => $kernel_symbol,)* }
            }

            /// The name that people read, such as `operator new(unsigned long)`.
            pub fn demangled(self) -> &'static str {
                match self { $(Self::$variant => $words,)* $(Self::$kernel_variant => $kernel_symbol,)* }
            }

            /// Whose blocks it makes or releases.
            pub fn family(self) -> AllocFamily {
                match self { $(Self::$variant => AllocFamily::$family,)* $(Self::$kernel_variant => AllocFamily::Malloc,)* }
            }

            /// Whether it releases a block.
            pub fn releases(self) -> bool {
                match self { $(Self::$variant => $releases,)* $(Self::$kernel_variant => $kernel_releases,)* }
            }
        }
    };
}

alloc_fns! {
    {
    /// `malloc`
    Malloc = 0, "malloc", "malloc", Malloc, false;
    /// `calloc`
    Calloc = 1, "calloc", "calloc", Malloc, false;
    /// `realloc`; allocates, and releases the old block
    Realloc = 2, "realloc", "realloc", Malloc, true;
    /// `reallocarray`; as `realloc`
    Reallocarray = 3, "reallocarray", "reallocarray", Malloc, true;
    /// `aligned_alloc`
    AlignedAlloc = 4, "aligned_alloc", "aligned_alloc", Malloc, false;
    /// `memalign`
    Memalign = 5, "memalign", "memalign", Malloc, false;
    /// `posix_memalign`
    PosixMemalign = 6, "posix_memalign", "posix_memalign", Malloc, false;
    /// `valloc`
    Valloc = 7, "valloc", "valloc", Malloc, false;
    /// `pvalloc`
    Pvalloc = 8, "pvalloc", "pvalloc", Malloc, false;
    /// `operator new(unsigned long)`
    New = 9, "_Znwm", "operator new(unsigned long)", New, false;
    /// `operator new(unsigned long, std::nothrow_t const&)`
    NewNothrow = 10, "_ZnwmRKSt9nothrow_t", "operator new(unsigned long, std::nothrow_t const&)", New, false;
    /// `operator new(unsigned long, std::align_val_t)`
    NewAligned = 11, "_ZnwmSt11align_val_t", "operator new(unsigned long, std::align_val_t)", New, false;
    /// `operator new(unsigned long, std::align_val_t, std::nothrow_t const&)`
    NewAlignedNothrow = 12, "_ZnwmSt11align_val_tRKSt9nothrow_t", "operator new(unsigned long, std::align_val_t, std::nothrow_t const&)", New, false;
    /// `operator new[](unsigned long)`
    NewArray = 13, "_Znam", "operator new[](unsigned long)", NewArray, false;
    /// `operator new[](unsigned long, std::nothrow_t const&)`
    NewArrayNothrow = 14, "_ZnamRKSt9nothrow_t", "operator new[](unsigned long, std::nothrow_t const&)", NewArray, false;
    /// `operator new[](unsigned long, std::align_val_t)`
    NewArrayAligned = 15, "_ZnamSt11align_val_t", "operator new[](unsigned long, std::align_val_t)", NewArray, false;
    /// `operator new[](unsigned long, std::align_val_t, std::nothrow_t const&)`
    NewArrayAlignedNothrow = 16, "_ZnamSt11align_val_tRKSt9nothrow_t", "operator new[](unsigned long, std::align_val_t, std::nothrow_t const&)", NewArray, false;
    /// `free`
    Free = 17, "free", "free", Malloc, true;
    /// `cfree`
    Cfree = 18, "cfree", "cfree", Malloc, true;
    /// `operator delete(void*)`
    Delete = 19, "_ZdlPv", "operator delete(void*)", New, true;
    /// `operator delete(void*, unsigned long)`
    DeleteSized = 20, "_ZdlPvm", "operator delete(void*, unsigned long)", New, true;
    /// `operator delete(void*, std::nothrow_t const&)`
    DeleteNothrow = 21, "_ZdlPvRKSt9nothrow_t", "operator delete(void*, std::nothrow_t const&)", New, true;
    /// `operator delete(void*, std::align_val_t)`
    DeleteAligned = 22, "_ZdlPvSt11align_val_t", "operator delete(void*, std::align_val_t)", New, true;
    /// `operator delete(void*, unsigned long, std::align_val_t)`
    DeleteSizedAligned = 23, "_ZdlPvmSt11align_val_t", "operator delete(void*, unsigned long, std::align_val_t)", New, true;
    /// `operator delete(void*, std::align_val_t, std::nothrow_t const&)`
    DeleteAlignedNothrow = 24, "_ZdlPvSt11align_val_tRKSt9nothrow_t", "operator delete(void*, std::align_val_t, std::nothrow_t const&)", New, true;
    /// `operator delete[](void*)`
    DeleteArray = 25, "_ZdaPv", "operator delete[](void*)", NewArray, true;
    /// `operator delete[](void*, unsigned long)`
    DeleteArraySized = 26, "_ZdaPvm", "operator delete[](void*, unsigned long)", NewArray, true;
    /// `operator delete[](void*, std::nothrow_t const&)`
    DeleteArrayNothrow = 27, "_ZdaPvRKSt9nothrow_t", "operator delete[](void*, std::nothrow_t const&)", NewArray, true;
    /// `operator delete[](void*, std::align_val_t)`
    DeleteArrayAligned = 28, "_ZdaPvSt11align_val_t", "operator delete[](void*, std::align_val_t)", NewArray, true;
    /// `operator delete[](void*, unsigned long, std::align_val_t)`
    DeleteArraySizedAligned = 29, "_ZdaPvmSt11align_val_t", "operator delete[](void*, unsigned long, std::align_val_t)", NewArray, true;
    /// `operator delete[](void*, std::align_val_t, std::nothrow_t const&)`
    DeleteArrayAlignedNothrow = 30, "_ZdaPvSt11align_val_tRKSt9nothrow_t", "operator delete[](void*, std::align_val_t, std::nothrow_t const&)", NewArray, true;
    }
    kernel {
    /// `kmalloc` and its relatives, large ones included
    Kmalloc = 31, "kmalloc", false;
    /// `kmem_cache_alloc`
    KmemCacheAlloc = 32, "kmem_cache_alloc", false;
    /// `vmalloc`
    Vmalloc = 33, "vmalloc", false;
    /// `alloc_percpu`
    AllocPercpu = 34, "alloc_percpu", false;
    /// `alloc_pages`
    AllocPages = 35, "alloc_pages", false;
    /// `memblock_alloc`, before the others work
    MemblockAlloc = 36, "memblock_alloc", false;
    /// `kfree`
    Kfree = 37, "kfree", true;
    }
}

impl AllocFn {
    /// The function with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Self> {
        let kernel = || Self::KERNEL.get((n as usize).checked_sub(Self::ALL.len())?);
        Self::ALL.get(n as usize).or_else(kernel).copied()
    }
}
