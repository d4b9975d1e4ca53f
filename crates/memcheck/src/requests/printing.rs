//! `VALGRIND_PRINTF` and its like: `printf` on behalf of the target, out of the target's memory.

use leakscope_ledger::events::Event;
use leakscope_translate::Engine;

use super::Words;
use crate::engine::Memcheck;
use crate::probe;

/// Arguments of a variadic function, in the way that System V's `va_list` has them.
enum Arguments {
    /// The address of a `va_list`.
    List(u64),
    /// Nothing is there.
    Nothing,
}

impl Arguments {
    /// The next integer or pointer.
    fn next(&mut self) -> u64 {
        let Self::List(list) = *self else { return 0 };
        let fetch = |at: u64| probe::word(at);
        let Some(offsets) = fetch(list) else { return 0 };
        let general = offsets & 0xffff_ffff;
        if general < 48 {
            let Some(area) = fetch(list + 16) else { return 0 };
            store(list, (offsets & !0xffff_ffff) | (general + 8));
            return fetch(area + general).unwrap_or(0);
        }
        let Some(overflow) = fetch(list + 8) else { return 0 };
        store(list + 8, overflow + 8);
        fetch(overflow).unwrap_or(0)
    }
}

fn store(at: u64, value: u64) {
    if probe::can_write(at) && probe::can_write(at + 7) {
        // SAFETY: just found to be writable.
        unsafe { (at as *mut u64).write_unaligned(value) };
    }
}

/// What stands behind a `%`.
struct Format {
    left: bool,
    zeros: bool,
    plus: bool,
    alternate: bool,
    grouped: bool,
    width: usize,
    precision: Option<usize>,
    longs: u32,
}

/// `printf`; floating-point formats show nothing, as in Valgrind.
fn format(text: &[u8], arguments: &mut Arguments) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut f = Format {
            left: false,
            zeros: false,
            plus: false,
            alternate: false,
            grouped: false,
            width: 0,
            precision: None,
            longs: 0,
        };
        loop {
            let Some((&byte, after)) = rest.split_first() else { return out };
            rest = after;
            match byte {
                b'-' => f.left = true,
                b'0' if f.width == 0 && f.precision.is_none() => f.zeros = true,
                b'+' => f.plus = true,
                b'#' => f.alternate = true,
                b'\'' => f.grouped = true,
                b' ' => {}
                b'*' => f.width = arguments.next() as u32 as usize & 0xffff,
                b'.' => f.precision = Some(0),
                b'0'..=b'9' => {
                    let place = f.precision.as_mut().unwrap_or(&mut f.width);
                    *place = (*place * 10 + usize::from(byte - b'0')).min(0xffff);
                }
                b'l' | b'z' | b'j' | b't' => f.longs += 1,
                b'h' => {}
                _ => {
                    convert(byte, &f, arguments, &mut out);
                    break;
                }
            }
        }
    }
    out
}

fn convert(kind: u8, f: &Format, arguments: &mut Arguments, out: &mut Vec<u8>) {
    let body: Vec<u8> = match kind {
        b'%' => b"%".to_vec(),
        b'c' => vec![arguments.next() as u8],
        b's' => {
            let at = arguments.next();
            let most = f.precision.unwrap_or(1 << 16);
            if at == 0 { b"(null)".to_vec() } else { text_up_to(at, most) }
        }
        b'd' | b'i' => {
            let value = arguments.next();
            let value = if f.longs > 0 { value as i64 } else { i64::from(value as i32) };
            let digits =
                if f.grouped { crate::errors::grouped(value.unsigned_abs()) } else { value.unsigned_abs().to_string() };
            let sign = if value < 0 {
                "-"
            } else if f.plus {
                "+"
            } else {
                ""
            };
            format!("{sign}{digits}").into_bytes()
        }
        b'u' | b'x' | b'X' | b'o' => {
            let value = arguments.next();
            let value = if f.longs > 0 { value } else { u64::from(value as u32) };
            match kind {
                b'u' if f.grouped => crate::errors::grouped(value).into_bytes(),
                b'u' => value.to_string().into_bytes(),
                b'x' if f.alternate => format!("{value:#x}").into_bytes(),
                b'x' => format!("{value:x}").into_bytes(),
                b'X' => format!("{value:X}").into_bytes(),
                _ => format!("{value:o}").into_bytes(),
            }
        }
        b'p' => format!("{:#x}", arguments.next()).into_bytes(),
        _ => Vec::new(),
    };
    let room = f.width.saturating_sub(body.len());
    let padding = if f.zeros && !f.left && kind != b's' { b'0' } else { b' ' };
    if !f.left {
        out.extend(std::iter::repeat_n(padding, room));
    }
    out.extend_from_slice(&body);
    if f.left {
        out.extend(std::iter::repeat_n(b' ', room));
    }
}

/// A string, or its first bytes.
fn text_up_to(at: u64, most: usize) -> Vec<u8> {
    let mut found = Vec::new();
    let mut byte = [0];
    while found.len() < most && probe::read(at + found.len() as u64, &mut byte) && byte[0] != 0 {
        found.push(byte[0]);
    }
    found
}

impl Memcheck {
    /// PRINTF, PRINTF_BACKTRACE, and the two whose `va_list` comes by reference. Gives how many characters there are.
    pub(super) fn print(&mut self, engine: &Engine, words: &Words) -> u64 {
        let [request, text, list, ..] = *words;
        let Some(text) = probe::text(text, 1 << 16) else { return 0 };
        // The older two pass the list itself, which is a pointer to it on this machine.
        let mut arguments = if list == 0 { Arguments::Nothing } else { Arguments::List(list) };
        let printed = format(&text, &mut arguments);
        let length = printed.len() as u64;
        let with_stack = request & 1 == 0;
        if with_stack {
            self.walk_request(engine);
        }
        let stack = if with_stack { self.walk.clone() } else { Vec::new() };
        let text = String::from_utf8_lossy(&printed).into_owned();
        self.output.tell(&Event::Message { text, stack, by_program: true });
        self.output.wait();
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_table() {
        // A list whose six registers are used up: everything comes from the overflow area.
        let values: [u64; 6] = [42, -7i32 as u32 as u64, 0xdead_beef, c"text".as_ptr() as u64, 1_234_567, 9];
        let run = |text: &str| {
            let mut list = [48u64, values.as_ptr() as u64, 0];
            let mut arguments = Arguments::List(list.as_mut_ptr() as u64);
            String::from_utf8(format(text.as_bytes(), &mut arguments)).unwrap()
        };
        assert_eq!(run("a%db%d%%"), "a42b-7%");
        assert_eq!(run("%5d|%-5d|%08x"), "   42|-7   |deadbeef");
        assert_eq!(run("%d %d %lx %.2s %'lu"), "42 -7 deadbeef te 1,234,567");
        assert_eq!(run("%+d"), "+42");
        assert_eq!(run("%"), "");
    }
}
