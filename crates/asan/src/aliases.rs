//! Programs that define a function of libc themselves reach our hook under a second name.

use core::arch::naked_asm;

macro_rules! aliases {
    ($($alias:ident => $hook:literal;)*) => { $(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $alias() {
            naked_asm!(".cfi_startproc", concat!("jmp ", $hook), ".cfi_endproc")
        }
    )* };
}

aliases! {
    __interceptor_malloc => "malloc";
    ___interceptor_malloc => "malloc";
    __interceptor_free => "free";
    ___interceptor_free => "free";
    __interceptor_calloc => "calloc";
    ___interceptor_calloc => "calloc";
    __interceptor_realloc => "realloc";
    ___interceptor_realloc => "realloc";
    __interceptor_memalign => "memalign";
    ___interceptor_memalign => "memalign";
    __interceptor_posix_memalign => "posix_memalign";
    ___interceptor_posix_memalign => "posix_memalign";
    __interceptor_strtol => "strtol";
    ___interceptor_strtol => "strtol";
    __interceptor_strtoll => "strtoll";
    ___interceptor_strtoll => "strtoll";
    __interceptor_atoi => "atoi";
    ___interceptor_atoi => "atoi";
    __interceptor_strlen => "strlen";
    ___interceptor_strlen => "strlen";
    __interceptor_strcpy => "strcpy";
    ___interceptor_strcpy => "strcpy";
    __interceptor_strcmp => "strcmp";
    ___interceptor_strcmp => "strcmp";
    __interceptor_strncpy => "strncpy";
    ___interceptor_strncpy => "strncpy";
    __interceptor_strcat => "strcat";
    ___interceptor_strcat => "strcat";
    __interceptor_memcpy => "memcpy";
    ___interceptor_memcpy => "memcpy";
    __interceptor_memmove => "memmove";
    ___interceptor_memmove => "memmove";
    __interceptor_memset => "memset";
    ___interceptor_memset => "memset";
    __interceptor_memcmp => "memcmp";
    ___interceptor_memcmp => "memcmp";
    __interceptor_memchr => "memchr";
    ___interceptor_memchr => "memchr";
    __interceptor_read => "read";
    ___interceptor_read => "read";
    __interceptor_write => "write";
    ___interceptor_write => "write";
    __interceptor_pread => "pread";
    ___interceptor_pread => "pread";
    __interceptor_fopen => "fopen";
    ___interceptor_fopen => "fopen";
    __interceptor_pthread_create => "pthread_create";
    ___interceptor_pthread_create => "pthread_create";
    __interceptor_open_memstream => "open_memstream";
    ___interceptor_open_memstream => "open_memstream";
}
