//! What the target asks with the macros of `valgrind.h` and `memcheck.h`.
//!
//! Source: those two headers (BSD-licensed), which describe every request, its arguments and its answer; Valgrind's
//! manual, sections 3.1, 4.7 and 4.8.

mod memory;
mod mempools;
mod monitor;
mod printing;

use leakscope_ledger::events::{Event, Field, asked};
use leakscope_model::CheckTrigger;
use leakscope_translate::{Action, Engine, Gpr};

use crate::engine::Memcheck;
use crate::probe;

/// What client requests left behind.
#[derive(Clone, Debug, Default)]
pub struct ClientState {
    /// Ranges in which errors are not told.
    pub ignored_ranges: Vec<(u64, u64)>,
    /// Stacks that were registered, by number.
    pub stacks: Vec<Option<(u64, u64)>>,
    /// Function calls on the real processor that are on their way: where to go on.
    pub calls: Vec<u64>,
}

/// A request and its arguments.
type Words = [u64; 6];

impl Memcheck {
    /// Answers the request that the guest stands behind.
    pub fn client_request(&mut self, engine: &mut Engine) -> Action {
        // Three sequences end in different exchanges.
        let mut last = [0];
        probe::read(engine.guest().rip.wrapping_sub(1), &mut last);
        match last {
            // xchg rcx,rcx
            [0xc9] => {
                self.wrapped_function(engine);
                return Action::Continue;
            }
            // xchg rdx,rdx
            [0xd2] => return self.call_unwrapped(engine),
            _ => {}
        }
        let at = engine.guest().gpr(Gpr::Rax);
        let mut words: Words = [0; 6];
        for (number, word) in words.iter_mut().enumerate() {
            match probe::word(at.wrapping_add(8 * number as u64)) {
                Some(value) => *word = value,
                None => return Action::Continue,
            }
        }
        if let Some(answer) = self.answer(engine, &words) {
            engine.guest_mut().set_gpr(Gpr::Rdx, answer);
        }
        Action::Continue
    }

    /// `None` keeps the default answer.
    fn answer(&mut self, engine: &mut Engine, words: &Words) -> Option<u64> {
        let [request, first, second, third, ..] = *words;
        match request {
            // RUNNING_ON_VALGRIND
            0x1001 => Some(1),
            // DISCARD_TRANSLATIONS
            0x1002 => {
                engine.mapping_changed(first, first.saturating_add(second));
                Some(0)
            }
            // CLIENT_CALL0 to CLIENT_CALL3: the function runs as translated code, with a thread number in front.
            0x1101..=0x1104 => {
                self.call_function(engine, words);
                None
            }
            // COUNT_ERRORS
            0x1201 => {
                self.output.wait();
                Some(self.output.get(Field::Shown))
            }
            0x1202 => Some(self.monitor_command(engine, first)),
            // CLO_CHANGE
            0x1203 => {
                self.change_option(first);
                Some(0)
            }
            0x1301 => Some(self.malloc_like(engine, first, second, third, words[4] != 0)),
            0x130b => Some(self.resize_in_place(engine, words)),
            0x1302 => Some(self.free_like(engine, first)),
            0x1303..=0x130a => Some(self.mempool(engine, words)),
            0x1401..=0x1404 => Some(self.print(engine, words)),
            0x1501 => {
                self.client.stacks.push(Some((first.min(second), first.max(second))));
                Some(self.client.stacks.len() as u64)
            }
            0x1502 => {
                if let Some(stack) = self.client.stacks.get_mut((first as usize).wrapping_sub(1)) {
                    *stack = None;
                }
                Some(0)
            }
            0x1503 => {
                if let Some(stack) = self.client.stacks.get_mut((first as usize).wrapping_sub(1)) {
                    *stack = Some((second.min(third), second.max(third)));
                }
                Some(0)
            }
            // LOAD_PDB_DEBUGINFO
            0x1601 => Some(0),
            // MAP_IP_TO_SRCLOC: names are known outside only.
            0x1701 => {
                if probe::can_write(second) {
                    // SAFETY: just found to be writable.
                    unsafe { *(second as *mut u8) = 0 };
                }
                Some(0)
            }
            // CHANGE_ERR_DISABLEMENT
            0x1801 => {
                let disabled = &mut self.threads.current().errors_disabled;
                *disabled = disabled.saturating_add_signed((first as i64).clamp(-1, 1) as i32);
                Some(0)
            }
            // VEX_INIT_FOR_IRI, INNER_THREADS
            0x1901 | 0x1902 => Some(0),
            _ if request >> 16 == u64::from(b'M') << 8 | u64::from(b'C') => {
                self.memcheck_request(engine, request & 0xffff, words)
            }
            _ => None,
        }
    }

    /// `VALGRIND_NON_SIMD_CALL`: calls a function of the target with the thread's number and its arguments, and hands its
    /// answer on.
    fn call_function(&mut self, engine: &mut Engine, words: &Words) {
        let thread = u64::from(self.threads.current().number);
        let back = engine.guest().rip;
        let rsp = (engine.guest().gpr(Gpr::Rsp).wrapping_sub(256) & !15).wrapping_sub(8);
        if !probe::can_write(rsp) {
            return;
        }
        self.client.calls.push(back);
        self.client.calls.push(engine.guest().gpr(Gpr::Rsp));
        crate::engine::shadow().allow(rsp - 128, 128 + 256);
        // SAFETY: just found to be writable; below everything that the target uses of its stack.
        unsafe { (rsp as *mut u64).write(crate::tool::RETURN_FROM_CALL) };
        let guest = engine.guest_mut();
        guest.set_gpr(Gpr::Rsp, rsp);
        guest.set_gpr(Gpr::Rdi, thread);
        guest.set_gpr(Gpr::Rsi, words[2]);
        guest.set_gpr(Gpr::Rdx, words[3]);
        guest.set_gpr(Gpr::Rcx, words[4]);
        guest.rip = words[1];
    }

    /// The function that `call_function` called has returned.
    pub fn returned_from_call(&mut self, engine: &mut Engine) {
        let (Some(rsp), Some(back)) = (self.client.calls.pop(), self.client.calls.pop()) else { return };
        let guest = engine.guest_mut();
        let answer = guest.gpr(Gpr::Rax);
        guest.set_gpr(Gpr::Rdx, answer);
        guest.set_gpr(Gpr::Rsp, rsp);
        guest.rip = back;
    }

    /// `VALGRIND_CLO_CHANGE`: options of the engine can change; those of reports are fixed when they begin.
    fn change_option(&mut self, text: u64) {
        let Some(text) = probe::text(text, 4096) else { return };
        let text = String::from_utf8_lossy(&text).into_owned();
        let Some((name, value)) = text.trim_start_matches("--").split_once('=') else { return };
        self.options.change(name, value);
        self.output.tell(&Event::Message { text: format!("option {text}"), stack: Vec::new(), by_program: false });
    }

    /// `VALGRIND_DO_LEAK_CHECK` in its forms.
    fn leak_check_request(&mut self, engine: &Engine, quick: bool, mode: u64) {
        let how = if quick { asked::SUMMARY } else { asked::FULL };
        let delta = match mode {
            1 => asked::ADDED,
            2 => asked::CHANGED,
            _ => 0,
        };
        self.check_leaks(engine, CheckTrigger::OnDemand, 0, how | delta);
    }
}
