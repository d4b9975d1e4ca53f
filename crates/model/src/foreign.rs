//! What other tools find that we do not: their names, and kinds of memory errors in Memcheck's words.
//!
//! Source: Valgrind manual, section 4.2 ("Explanation of error messages from Memcheck"), and
//! `docs/internals/xml-output-protocol4.txt` of 3.19 for the names; compiler-rt's
//! `lib/asan/asan_errors.h` for AddressSanitizer's.

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $words:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $number,)*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The one with this number.
            pub fn from_u8(n: u8) -> Option<Self> {
                Self::ALL.get(n as usize).copied()
            }

            /// Its name; for an error kind the class of a fingerprint, which never changes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $words,)* }
            }

            /// The one with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|candidate| candidate.name() == name)
            }
        }
    };
}

numbered! {
    /// A tool whose findings we hold: the witness of a finding.
    Tool {
        /// `leakscope run` or `leakscope snapshot`.
        Leakscope = 0, "leakscope";
        /// Valgrind's Memcheck.
        Memcheck = 1, "Valgrind Memcheck";
        /// AddressSanitizer.
        AddressSanitizer = 2, "AddressSanitizer";
        /// LeakSanitizer, alone or as a part of AddressSanitizer.
        LeakSanitizer = 3, "LeakSanitizer";
        /// glibc's mtrace.
        Mtrace = 4, "glibc mtrace";
        /// The kernel's kmemleak.
        Kmemleak = 5, "kmemleak";
        /// heaptrack.
        Heaptrack = 6, "heaptrack";
        /// memleak of bcc or libbpf-tools.
        BccMemleak = 7, "bcc memleak";
        /// A heap profile of jemalloc.
        Jemalloc = 8, "jemalloc";
        /// A profile in pprof's format, or a text heap profile of gperftools.
        Pprof = 9, "pprof";
        /// Valgrind's Massif.
        Massif = 10, "Valgrind Massif";
        /// Dr. Memory.
        DrMemory = 11, "Dr. Memory";
        /// memray.
        Memray = 12, "memray";
        /// MemorySanitizer.
        MemorySanitizer = 13, "MemorySanitizer";
        /// The kernel's KASAN.
        Kasan = 14, "KASAN";
        /// The kernel's KFENCE.
        Kfence = 15, "KFENCE";
        /// The kernel's allocator with its checks switched on (`slub_debug`).
        SlubDebug = 16, "SLUB debug";
        /// The kernel's page_owner.
        PageOwner = 17, "page_owner";
    }
}

numbered! {
    /// A memory error that is not a wrong call to the allocator, named as in Memcheck's XML where Memcheck has it.
    ErrorKind {
        /// Memory was read that the program may not read.
        InvalidRead = 0, "InvalidRead";
        /// Memory was written that the program may not write.
        InvalidWrite = 1, "InvalidWrite";
        /// A jump to such memory.
        InvalidJump = 2, "InvalidJump";
        /// A decision depends on an uninitialised value.
        UninitCondition = 3, "UninitCondition";
        /// An uninitialised value was used, as an address for instance.
        UninitValue = 4, "UninitValue";
        /// A system call was given uninitialised or inaccessible bytes.
        SyscallParam = 5, "SyscallParam";
        /// Source and destination of a copy overlap.
        Overlap = 6, "Overlap";
        /// The program asked the checker about bytes that are not as they should be.
        ClientCheck = 7, "ClientCheck";
        /// A memory pool was used wrongly.
        InvalidMemPool = 8, "InvalidMemPool";
        /// The checker's own core met bytes that it may not use.
        CoreMemError = 9, "CoreMemError";
        /// An alignment that no allocator takes.
        BadAlign = 10, "BadAlign";
        /// A size that cannot be right, of an allocation or of a copy.
        BadSize = 11, "BadSize";
        /// A signal ended the program, and no access is known to be the cause.
        FatalSignal = 12, "FatalSignal";
        /// The stack was used up.
        StackOverflow = 13, "StackOverflow";
        /// Two definitions of one global variable differ.
        OdrViolation = 14, "OdrViolation";
        /// A global variable was used before it was initialised.
        InitOrder = 15, "InitOrder";
        /// Anything else; the message says what.
        Other = 16, "Other";
    }
}

impl ErrorKind {
    /// The kind of what AddressSanitizer calls `kind`, such as `heap-use-after-free`. `write` says how the memory was
    /// accessed, `None` when the report does not say.
    pub fn from_asan(kind: &str, write: Option<bool>) -> Self {
        let access = match write {
            Some(true) => Self::InvalidWrite,
            Some(false) => Self::InvalidRead,
            None => Self::Other,
        };
        match kind {
            "heap-use-after-free"
            | "heap-buffer-overflow"
            | "stack-buffer-overflow"
            | "stack-buffer-underflow"
            | "global-buffer-overflow"
            | "stack-use-after-return"
            | "stack-use-after-scope"
            | "use-after-poison"
            | "container-overflow"
            | "intra-object-overflow"
            | "dynamic-stack-buffer-overflow"
            | "unknown-crash"
            | "wild-addr-read"
            | "wild-addr-write" => access,
            "SEGV" | "BUS" | "null-deref" | "wild-access" => match write {
                None => Self::FatalSignal,
                Some(_) => access,
            },
            "wild-jump" => Self::InvalidJump,
            "stack-overflow" => Self::StackOverflow,
            "odr-violation" => Self::OdrViolation,
            "initialization-order-fiasco" => Self::InitOrder,
            "negative-size-param" => Self::BadSize,
            "invalid-allocation-alignment" | "invalid-aligned-alloc-alignment" | "invalid-posix-memalign-alignment" => {
                Self::BadAlign
            }
            "use-of-uninitialized-value" => Self::UninitValue,
            "bad-malloc_usable_size" | "bad-__sanitizer_get_allocated_size" => Self::ClientCheck,
            "ABRT" | "FPE" | "ILL" | "TRAP" => Self::FatalSignal,
            _ if kind.ends_with("-param-overlap") => Self::Overlap,
            _ => access,
        }
    }
}
