//! The C library's string functions, as the target calls them.

use leakscope_model::ErrorKind;
use leakscope_shadow::Shadow;
use leakscope_translate::{Engine, Gpr, Guest};

use crate::engine::{Memcheck, Replaced, shadow};
use crate::functions::Text;
use crate::probe;
use crate::strings::{self, Bad, Fault, Watched};

/// One call: what the functions of [`strings`] look at.
struct Call<'a> {
    engine: &'a mut Memcheck,
    guest: &'a Guest,
    function: Text,
    symbol: u64,
}

impl Watched for Call<'_> {
    fn shadow(&self) -> Shadow {
        shadow()
    }

    fn is_usable(&mut self, address: u64, write: bool) -> bool {
        if address >= leakscope_translate::GUEST_END {
            return false;
        }
        if !write {
            return probe::can_read(address);
        }
        if probe::can_write(address) {
            return true;
        }
        // Code that was translated from it may be why: the page is the target's to write to all the same.
        // SAFETY: string functions are called by light hooks alone.
        unsafe { Engine::before_write_in_hook(address, address + 1) };
        probe::can_write(address)
    }

    fn bad(&mut self, bad: Bad) {
        if self.engine.is_ignored(bad.address, bad.bytes) {
            return;
        }
        // Accesses at different places of a function are different errors.
        self.engine.walk_hook(self.guest, self.symbol + u64::from(bad.place));
        self.engine.report_access(self.guest, bad.address, bad.bytes, bad.write);
    }

    fn overlap(&mut self, destination: u64, source: u64, bytes: Option<u64>) {
        let name = self.function.name();
        let arguments = match bytes {
            Some(bytes) => format!("({destination:#x}, {source:#x}, {bytes})"),
            None => format!("({destination:#x}, {source:#x})"),
        };
        let message = format!("Source and destination overlap in {name}{arguments}");
        self.engine.walk_hook(self.guest, self.symbol);
        self.engine.report(self.guest, ErrorKind::Overlap, name, message, None);
    }
}

impl Memcheck {
    /// Whether the options say that errors in a range are not to be told.
    pub fn is_ignored(&self, address: u64, bytes: u64) -> bool {
        let last = address.saturating_add(bytes.saturating_sub(1));
        let is_within = |&(low, high): &(u64, u64)| low <= address && last <= high;
        self.options.ignored_ranges.iter().any(is_within) || self.client.ignored_ranges.iter().any(is_within)
    }

    /// Carries a call out; gives what it returns.
    pub fn call_text(&mut self, guest: &Guest, replaced: Replaced, function: Text) -> u64 {
        if self.options.check_arrays {
            self.check_call(guest, replaced.symbol, function);
        }
        let mut call = Call { engine: self, guest, function, symbol: replaced.symbol };
        match run(&mut call, function, guest) {
            Ok(value) => value,
            Err(fault) => {
                self.pending_fault = Some(fault);
                0
            }
        }
    }
}

fn run(m: &mut Call<'_>, function: Text, guest: &Guest) -> Result<u64, Fault> {
    let (a, b, c, d) = (guest.gpr(Gpr::Rdi), guest.gpr(Gpr::Rsi), guest.gpr(Gpr::Rdx), guest.gpr(Gpr::Rcx));
    let (byte, wide) = (b as u8, b as i32);
    let int = |value: i32| i64::from(value) as u64;
    use Text as T;
    Ok(match function {
        T::Strlen => strings::strlen(m, a)?,
        T::Strnlen => strings::strnlen(m, a, b)?,
        T::Strchr => strings::strchr(m, a, byte, false)?,
        T::Strchrnul => strings::strchr(m, a, byte, true)?,
        T::Strrchr => strings::strrchr(m, a, byte)?,
        T::Memchr => strings::memchr(m, a, byte, c)?,
        T::Rawmemchr => strings::memchr(m, a, byte, u64::MAX)?,
        T::Memrchr => strings::memrchr(m, a, byte, c)?,
        T::Strcmp => int(strings::strcmp(m, a, b, u64::MAX)?),
        T::Strncmp => int(strings::strcmp(m, a, b, c)?),
        T::Strcasecmp | T::StrcasecmpL => int(strings::strcasecmp(m, a, b, u64::MAX)?),
        T::Strncasecmp | T::StrncasecmpL => int(strings::strcasecmp(m, a, b, c)?),
        T::Memcmp => int(strings::memcmp(m, a, b, c)?),
        T::Memcpy | T::MemcpyChk => strings::memcpy(m, a, b, c)?,
        T::Memmove | T::MemmoveChk => strings::memmove(m, a, b, c)?,
        T::Bcopy => strings::memmove(m, b, a, c)?,
        T::Mempcpy | T::MempcpyChk => strings::memcpy(m, a, b, c)? + c,
        T::Memset | T::MemsetChk => strings::memset(m, a, byte, c)?,
        T::Bzero => strings::memset(m, a, 0, b)?,
        T::Strcpy | T::StrcpyChk => strings::strcpy(m, a, b)?,
        T::Stpcpy | T::StpcpyChk => strings::stpcpy(m, a, b)?,
        T::Strncpy | T::StrncpyChk => strings::strncpy(m, a, b, c)?,
        T::Stpncpy | T::StpncpyChk => strings::stpncpy(m, a, b, c)?,
        T::Strcat | T::StrcatChk => strings::strcat(m, a, b)?,
        T::Strncat | T::StrncatChk => strings::strncat(m, a, b, c)?,
        T::Strlcpy => strings::strlcpy(m, a, b, c)?,
        T::Strlcat => strings::strlcat(m, a, b, c)?,
        T::Strstr => strings::strstr(m, a, b)?,
        T::Strcasestr => strings::strcasestr(m, a, b)?,
        T::Strspn => strings::span(m, a, b, true)?,
        T::Strcspn => strings::span(m, a, b, false)?,
        T::Strpbrk => {
            let at = a + strings::span(m, a, b, false)?;
            // SAFETY: `span` has read the byte where it ended.
            if unsafe { *(at as *const u8) } == 0 { 0 } else { at }
        }
        T::Memmem => strings::memmem(m, a, b, c, d)?,
        T::Wcslen => strings::wcslen(m, a)?,
        T::Wcsnlen => strings::wcsnlen(m, a, b)?,
        T::Wcschr => strings::wcschr(m, a, wide)?,
        T::Wcsrchr => strings::wcsrchr(m, a, wide)?,
        T::Wcscmp => int(strings::wcscmp(m, a, b, u64::MAX)?),
        T::Wcsncmp => int(strings::wcscmp(m, a, b, c)?),
        T::Wcscpy => {
            strings::wcscpy(m, a, b)?;
            a
        }
        T::Wcpcpy => strings::wcscpy(m, a, b)?,
        T::Wmemchr => strings::wmemchr(m, a, wide, c)?,
        T::Wmemcmp => int(strings::wmemcmp(m, a, b, c)?),
        T::Wmemset | T::WmemsetChk => strings::wmemset(m, a, wide, c)?,
    })
}
