//! The shadow bytes around an address, and what they mean.

use crate::options::{has_gcc_words, options};
use crate::output::Address;
use crate::shadow_map::{OFFSET, SCALE, has_shadow, is_readable_shadow, shadow_of};
use alloc::string::String;
use core::fmt::Write;

const ROW: usize = 16;

fn byte_at(shadow: usize) -> u8 {
    // SAFETY: the caller saw that this lies in the mapped shadow.
    unsafe { *(shadow as *const u8) }
}

/// Prints the rows around an address of the program, and the legend.
pub fn print(address: usize) {
    if !has_shadow(address) {
        return;
    }
    let guilty = shadow_of(address);
    let middle = guilty & !(ROW - 1);
    let mut out = String::from("Shadow bytes around the buggy address:\n");
    for row in (middle - 5 * ROW..=middle + 5 * ROW).step_by(ROW) {
        if !is_readable_shadow(row) {
            continue;
        }
        // gcc's library shows where the row itself lies.
        let shown = if has_gcc_words() { row } else { (row - OFFSET) << SCALE };
        let _ = write!(out, "{}{}:", if row == middle { "=>" } else { "  " }, Address(shown));
        for at in row..row + ROW {
            let before = if at == guilty {
                "["
            } else if at == guilty + 1 && at != row {
                ""
            } else {
                " "
            };
            let after = if at == guilty { "]" } else { "" };
            let _ = write!(out, "{before}{:02x}{after}", byte_at(at));
        }
        out.push('\n');
    }
    if options().print_legend {
        out.push_str(LEGEND);
    }
    crate::output::print(&out);
}

const LEGEND: &str = "\
Shadow byte legend (one shadow byte represents 8 application bytes):
  Addressable:           00
  Partially addressable: 01 02 03 04 05 06 07 
  Heap left redzone:       fa
  Freed heap region:       fd
  Stack left redzone:      f1
  Stack mid redzone:       f2
  Stack right redzone:     f3
  Stack after return:      f5
  Stack use after scope:   f8
  Global redzone:          f9
  Global init order:       f6
  Poisoned by user:        f7
  Container overflow:      fc
  Array cookie:            ac
  Intra object redzone:    bb
  ASan internal:           fe
  Left alloca redzone:     ca
  Right alloca redzone:    cb
";
