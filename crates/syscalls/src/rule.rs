//! The rules of simple calls: which argument points to how many bytes, and which of them are written.

use crate::region::Param;
use crate::visit::Visit;

/// The place of an argument; the table's macro makes a constant of this type for each argument's name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arg(pub(crate) u8);

/// How many bytes there are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    Bytes(u32),
    /// As many as an argument says; a negative number means none.
    Arg(Arg),
    /// As many elements of a size as an argument says.
    Times(Arg, u32),
}

/// How many of them are written, and when.
#[derive(Debug, Clone, Copy)]
enum Written {
    Whole,
    /// As many bytes as the call returns.
    Result,
    /// As many elements of a size as the call returns.
    Results(u32),
    /// All, if the call returns more than zero.
    Positive,
    /// All, but only if a signal ended the call.
    Interrupted,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Text { most: u32 },
    Input(Length),
    Output(Length, Written),
    InOut(Length),
    By(fn(&mut Visit<'_>)),
}

/// When a null pointer is right.
#[derive(Debug, Clone, Copy)]
enum Null {
    Wrong,
    Right,
    /// If the argument has one of these bits.
    RightIf(Arg, u64),
}

/// One rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    arg: Arg,
    what: What,
    null: Null,
    called: &'static str,
}

const PATH_MAX: u32 = 4096;

const fn rule(arg: Arg, what: What) -> Rule {
    Rule { arg, what, null: Null::Wrong, called: "" }
}

/// A path: bytes up to a zero.
pub(crate) const fn text(arg: Arg) -> Rule {
    rule(arg, What::Text { most: PATH_MAX })
}

/// A string of which the kernel looks at `most` bytes.
pub(crate) const fn text_of(arg: Arg, most: u32) -> Rule {
    rule(arg, What::Text { most })
}

/// Bytes that the kernel reads.
pub(crate) const fn input(arg: Arg, length: Length) -> Rule {
    rule(arg, What::Input(length))
}

/// Bytes that the kernel writes: all of them, unless a method below says otherwise.
pub(crate) const fn output(arg: Arg, length: Length) -> Rule {
    rule(arg, What::Output(length, Written::Whole))
}

/// Bytes that the kernel reads and writes.
pub(crate) const fn inout(arg: Arg, length: Length) -> Rule {
    rule(arg, What::InOut(length))
}

/// A function describes it.
pub(crate) const fn by(describe: fn(&mut Visit<'_>)) -> Rule {
    rule(Arg(0), What::By(describe))
}

pub(crate) const fn bytes(count: u32) -> Length {
    Length::Bytes(count)
}

pub(crate) const fn count_of(arg: Arg) -> Length {
    Length::Arg(arg)
}

pub(crate) const fn times(arg: Arg, size: u32) -> Length {
    Length::Times(arg, size)
}

impl Rule {
    /// A null pointer is right, and nothing is read or written then.
    pub(crate) const fn or_null(self) -> Self {
        Self { null: Null::Right, ..self }
    }

    /// A null pointer is right if `arg` has one of the bits of `mask`.
    pub(crate) const fn or_null_if(self, arg: Arg, mask: u64) -> Self {
        Self { null: Null::RightIf(arg, mask), ..self }
    }

    /// Memcheck's words, where they are not `call(argument)`.
    pub(crate) const fn called(self, called: &'static str) -> Self {
        Self { called, ..self }
    }

    const fn written(self, written: Written) -> Self {
        match self.what {
            What::Output(length, _) => Self { what: What::Output(length, written), ..self },
            _ => panic!("only an output is written"),
        }
    }

    /// As many bytes as the call returns are written.
    pub(crate) const fn result(self) -> Self {
        self.written(Written::Result)
    }

    /// As many elements of `size` bytes as the call returns are written.
    pub(crate) const fn results(self, size: u32) -> Self {
        self.written(Written::Results(size))
    }

    /// Written only if the call returns more than zero.
    pub(crate) const fn if_positive(self) -> Self {
        self.written(Written::Positive)
    }

    /// Written only if a signal ended the call.
    pub(crate) const fn if_interrupted(self) -> Self {
        self.written(Written::Interrupted)
    }

    /// Says what the rule means for the call that `visit` is about.
    pub(crate) fn describe(&self, visit: &mut Visit<'_>) {
        let index = usize::from(self.arg.0);
        if let What::By(describe) = self.what {
            return describe(visit);
        }
        let address = visit.arg(index);
        let null_is_right = match self.null {
            Null::Wrong => false,
            Null::Right => true,
            Null::RightIf(arg, mask) => visit.arg(usize::from(arg.0)) & mask != 0,
        };
        if address == 0 && null_is_right {
            return;
        }
        let param = if self.called.is_empty() { visit.argument(index) } else { Param::from(self.called) };
        match self.what {
            What::Text { most } => visit.text(param, address, u64::from(most)),
            What::Input(length) => visit.input(param, address, visit.length(length)),
            What::Output(length, written) => {
                let capacity = visit.length(length);
                match written {
                    Written::Whole => visit.output(param, address, capacity, capacity),
                    Written::Result => visit.output(param, address, capacity, visit.returned()),
                    Written::Results(size) => {
                        visit.output(param, address, capacity, visit.returned().saturating_mul(u64::from(size)));
                    }
                    Written::Positive => {
                        visit.output(param, address, capacity, if visit.returned() > 0 { capacity } else { 0 });
                    }
                    Written::Interrupted => visit.output_if(param, address, capacity, visit.was_interrupted()),
                }
            }
            What::InOut(length) => visit.inout(param, address, visit.length(length)),
            What::By(_) => {}
        }
    }
}
