//! Events as bytes. Numbers are little-endian; strings and arrays have their length in front.

use leakscope_model::{AllocFn, CheckTrigger, ErrorKind, Heuristic, LeakKind, MisuseKind};
use std::string::String;
use std::vec::Vec;

use super::{
    Addresses, Block, Check, Descriptor, Error, Event, Heap, Module, Process, Record, StackFrame, Subject, What,
};

/// Bytes in front of a payload.
pub const FRAME_BYTES: u64 = 8;

/// Length of the payload and tag, from the bytes in front of it.
pub fn frame_of(bytes: [u8; FRAME_BYTES as usize]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// Appends an event with what stands in front of it.
pub fn encode(event: &Event, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; FRAME_BYTES as usize]);
    let mut writer = Writer(out);
    let tag = writer.event(event);
    while !(out.len() - start).is_multiple_of(8) {
        out.push(0);
    }
    let length = (out.len() - start) as u32 - FRAME_BYTES as u32;
    if let Some(frame) = out.get_mut(start..start + FRAME_BYTES as usize) {
        frame[..4].copy_from_slice(&length.to_le_bytes());
        frame[4..].copy_from_slice(&tag.to_le_bytes());
    }
}

/// The event in a payload; `None` when the bytes are none.
pub fn decode(tag: u32, payload: &[u8]) -> Option<Event> {
    Reader(payload).event(tag)
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn word(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn longs(&mut self, values: &[u64]) {
        values.iter().for_each(|&value| self.long(value));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    fn addresses(&mut self, stack: &[u64]) {
        self.word(stack.len() as u32);
        self.longs(stack);
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.word(items.len() as u32);
        items.iter().for_each(|item| write(self, item));
    }

    fn event(&mut self, event: &Event) -> u32 {
        match event {
            Event::Process(process) => {
                self.process(process);
                1
            }
            Event::Module(module) => {
                self.module(module);
                2
            }
            Event::ModuleGone { number } => {
                self.word(*number);
                3
            }
            Event::Error(error) => {
                self.error(error);
                4
            }
            Event::Counts(counts) => {
                self.list(counts, |w, &(number, count)| {
                    w.word(number);
                    w.long(count);
                });
                5
            }
            Event::Heap(heap) => {
                let Heap { live_bytes, live_blocks, allocations, frees, allocated_bytes } = *heap;
                self.longs(&[live_bytes, live_blocks, allocations, frees, allocated_bytes]);
                6
            }
            Event::Check(check) => {
                self.check(check);
                7
            }
            Event::Message { text, stack, by_program } => {
                self.bytes(text.as_bytes());
                self.addresses(stack);
                self.byte((*by_program).into());
                8
            }
            Event::Ended { status, monotonic_ns } => {
                self.word(*status as u32);
                self.long(*monotonic_ns);
                9
            }
            Event::FatalSignal { signal, code, address, stack } => {
                self.word(*signal as u32);
                self.word(*code as u32);
                self.long(*address);
                self.addresses(stack);
                13
            }
            Event::Failed(text) => {
                self.bytes(text.as_bytes());
                10
            }
            Event::Forked => 11,
            Event::Exec => 14,
            Event::ExecFailed => 15,
            Event::Descriptors(list) => {
                self.list(list, Self::descriptor);
                12
            }
            Event::Functions(list) => {
                self.list(list, |w, &(function, address)| {
                    w.byte(function as u8);
                    w.long(address);
                });
                16
            }
            Event::Question(subject) => {
                self.subject(subject);
                17
            }
            Event::StringFunctions(list) => {
                self.list(list, |w, (name, address)| {
                    w.bytes(name.as_bytes());
                    w.long(*address);
                });
                18
            }
        }
    }

    fn process(&mut self, process: &Process) {
        self.word(process.pid);
        self.word(process.parent_pid);
        self.word(process.origin);
        self.longs(&[process.realtime_ns, process.monotonic_ns]);
        self.bytes(&process.executable);
        self.list(&process.command_line, |w, argument| w.bytes(argument));
    }

    fn module(&mut self, module: &Module) {
        self.word(module.number);
        self.longs(&[module.start, module.end, module.load_bias]);
        self.bytes(&module.path);
        self.bytes(&module.build_id);
    }

    fn descriptor(&mut self, descriptor: &Descriptor) {
        self.word(descriptor.number as u32);
        self.bytes(descriptor.what.as_bytes());
        self.bytes(&descriptor.target);
        self.addresses(&descriptor.stack);
    }

    fn error(&mut self, error: &Error) {
        self.word(error.number);
        self.word(error.thread);
        self.word(error.tid);
        self.bytes(error.thread_name.as_bytes());
        self.addresses(&error.stack);
        match &error.what {
            What::Memory { kind, access, bytes, address, message } => {
                self.byte(0);
                self.byte(*kind as u8);
                self.byte(*access);
                self.longs(&[*bytes, *address]);
                self.bytes(message.as_bytes());
            }
            What::Misuse { kind, function, address, block } => {
                self.byte(1);
                self.byte(*kind as u8);
                self.byte(*function as u8);
                self.long(*address);
                self.byte(block.is_some().into());
                if let Some(block) = block {
                    self.longs(&[block.start, block.bytes]);
                    self.byte(block.function as u8);
                    self.addresses(&block.allocated);
                    self.addresses(&block.freed);
                    self.byte(block.freed_by as u8);
                }
            }
        }
        self.list(&error.auxiliary, |w, (label, stack)| {
            w.bytes(label.as_bytes());
            w.addresses(stack);
        });
        self.byte(error.subject.is_some().into());
        if let Some(subject) = &error.subject {
            self.subject(subject);
        }
    }

    fn subject(&mut self, subject: &Subject) {
        self.long(subject.address);
        self.word(subject.thread);
        self.list(&subject.frames, |w, frame| {
            w.longs(&[frame.pc, frame.stack_pointer, frame.frame_pointer, frame.cfa]);
        });
        self.byte(subject.is_within.into());
        self.byte(subject.object.is_some().into());
        if let Some((start, end)) = subject.object {
            self.longs(&[start, end]);
        }
    }

    fn check(&mut self, check: &Check) {
        self.word(check.number);
        self.byte(check.trigger as u8);
        self.word(check.status);
        self.byte(check.asked);
        self.longs(&[check.monotonic_ns, check.check_ns, check.blocks, check.bytes]);
        self.longs(&[check.root_bytes, check.unreadable_bytes]);
        self.word(check.threads);
        self.byte(check.freeres.into());
        self.list(&check.records, |w, record| {
            w.byte(record.kind as u8);
            w.byte(record.heuristic.map_or(0, |heuristic| heuristic as u8 + 1));
            w.longs(&[record.blocks, record.bytes, record.indirect_blocks, record.indirect_bytes]);
            w.longs(&[record.old_blocks, record.old_bytes, record.old_indirect_bytes]);
            w.longs(&record.addresses);
            w.byte(record.function as u8);
            w.addresses(&record.stack);
        });
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        self.byte().map(|byte| byte != 0)
    }

    fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.word()? as usize;
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first.to_vec())
    }

    fn text(&mut self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As many items as the length says; each takes at least `least` bytes, so that a wrong length allocates nothing.
    fn list<T>(&mut self, least: usize, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let length = self.word()? as usize;
        if length.checked_mul(least)? > self.0.len() {
            return None;
        }
        (0..length).map(|_| read(self)).collect()
    }

    fn addresses(&mut self) -> Option<Addresses> {
        self.list(8, Self::long)
    }

    fn function(&mut self) -> Option<AllocFn> {
        AllocFn::from_u8(self.byte()?)
    }

    fn event(&mut self, tag: u32) -> Option<Event> {
        Some(match tag {
            1 => Event::Process(Process {
                pid: self.word()?,
                parent_pid: self.word()?,
                origin: self.word()?,
                realtime_ns: self.long()?,
                monotonic_ns: self.long()?,
                executable: self.bytes()?,
                command_line: self.list(4, Self::bytes)?,
            }),
            2 => Event::Module(Module {
                number: self.word()?,
                start: self.long()?,
                end: self.long()?,
                load_bias: self.long()?,
                path: self.bytes()?,
                build_id: self.bytes()?,
            }),
            3 => Event::ModuleGone { number: self.word()? },
            4 => Event::Error(self.error()?),
            5 => Event::Counts(self.list(12, |r| Some((r.word()?, r.long()?)))?),
            6 => Event::Heap(Heap {
                live_bytes: self.long()?,
                live_blocks: self.long()?,
                allocations: self.long()?,
                frees: self.long()?,
                allocated_bytes: self.long()?,
            }),
            7 => Event::Check(self.check()?),
            8 => Event::Message { text: self.text()?, stack: self.addresses()?, by_program: self.flag()? },
            9 => Event::Ended { status: self.word()? as i32, monotonic_ns: self.long()? },
            13 => Event::FatalSignal {
                signal: self.word()? as i32,
                code: self.word()? as i32,
                address: self.long()?,
                stack: self.addresses()?,
            },
            10 => Event::Failed(self.text()?),
            11 => Event::Forked,
            14 => Event::Exec,
            15 => Event::ExecFailed,
            12 => Event::Descriptors(self.list(16, |r| {
                Some(Descriptor {
                    number: r.word()? as i32,
                    what: r.text()?,
                    target: r.bytes()?,
                    stack: r.addresses()?,
                })
            })?),
            17 => Event::Question(self.subject()?),
            18 => Event::StringFunctions(self.list(12, |r| Some((r.text()?, r.long()?)))?),
            16 => Event::Functions(self.list(9, |r| Some((r.function()?, r.long()?)))?),
            _ => return None,
        })
    }

    fn error(&mut self) -> Option<Error> {
        Some(Error {
            number: self.word()?,
            thread: self.word()?,
            tid: self.word()?,
            thread_name: self.text()?,
            stack: self.addresses()?,
            what: match self.byte()? {
                0 => What::Memory {
                    kind: ErrorKind::from_u8(self.byte()?)?,
                    access: self.byte()?,
                    bytes: self.long()?,
                    address: self.long()?,
                    message: self.text()?,
                },
                1 => What::Misuse {
                    kind: MisuseKind::from_u8(self.byte()?)?,
                    function: self.function()?,
                    address: self.long()?,
                    block: if self.flag()? { Some(self.block()?) } else { None },
                },
                _ => return None,
            },
            auxiliary: self.list(8, |r| Some((r.text()?, r.addresses()?)))?,
            subject: if self.flag()? { Some(self.subject()?) } else { None },
        })
    }

    fn subject(&mut self) -> Option<Subject> {
        Some(Subject {
            address: self.long()?,
            thread: self.word()?,
            frames: self.list(32, |r| {
                Some(StackFrame { pc: r.long()?, stack_pointer: r.long()?, frame_pointer: r.long()?, cfa: r.long()? })
            })?,
            is_within: self.flag()?,
            object: if self.flag()? { Some((self.long()?, self.long()?)) } else { None },
        })
    }

    fn block(&mut self) -> Option<Block> {
        Some(Block {
            start: self.long()?,
            bytes: self.long()?,
            function: self.function()?,
            allocated: self.addresses()?,
            freed: self.addresses()?,
            freed_by: self.function()?,
        })
    }

    fn check(&mut self) -> Option<Check> {
        Some(Check {
            number: self.word()?,
            trigger: CheckTrigger::from_u8(self.byte()?)?,
            status: self.word()?,
            asked: self.byte()?,
            monotonic_ns: self.long()?,
            check_ns: self.long()?,
            blocks: self.long()?,
            bytes: self.long()?,
            root_bytes: self.long()?,
            unreadable_bytes: self.long()?,
            threads: self.word()?,
            freeres: self.flag()?,
            records: self.list(83, |r| {
                Some(Record {
                    kind: LeakKind::from_u8(r.byte()?)?,
                    heuristic: match r.byte()? {
                        0 => None,
                        number => Some(Heuristic::from_u8(number - 1)?),
                    },
                    blocks: r.long()?,
                    bytes: r.long()?,
                    indirect_blocks: r.long()?,
                    indirect_bytes: r.long()?,
                    old_blocks: r.long()?,
                    old_bytes: r.long()?,
                    old_indirect_bytes: r.long()?,
                    addresses: [r.long()?, r.long()?, r.long()?],
                    function: r.function()?,
                    stack: r.addresses()?,
                })
            })?,
        })
    }
}
