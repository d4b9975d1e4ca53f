//! The first contents of the stack: arguments, environment, auxiliary vector.

use std::ffi::{CStr, CString};

/// What goes onto it.
pub struct StackContents<'a> {
    /// The arguments, program name first.
    pub arguments: &'a [CString],
    /// The environment.
    pub environment: &'a [CString],
    /// The path that was executed.
    pub executable: &'a CStr,
    /// The auxiliary vector without its end; [`AT_EXECFN`], [`AT_RANDOM`] and [`AT_PLATFORM`] get their addresses here.
    pub auxiliary: &'a [(u64, u64)],
    /// For `AT_RANDOM`.
    pub random: [u8; 16],
}

/// Address of the executed path.
pub const AT_EXECFN: u64 = 31;
/// Address of 16 random bytes.
pub const AT_RANDOM: u64 = 25;
/// Address of the processor's name.
pub const AT_PLATFORM: u64 = 15;

/// A stack as bytes, to be copied to `[pointer, top)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The stack pointer at the program's start.
    pub pointer: u64,
    /// What lies from there on.
    pub bytes: Vec<u8>,
    /// Where the auxiliary vector begins.
    pub auxiliary: u64,
}

impl Stack {
    /// Lays the contents out below `top`, a multiple of 16.
    pub fn build(top: u64, contents: &StackContents<'_>) -> Self {
        // From the top down: the path, strings, random bytes, then (at a multiple of 16) the vectors.
        let mut strings: Vec<u8> = Vec::new();
        let mut places = Vec::new();
        let mut put = |bytes: &[u8]| {
            places.push(strings.len() as u64);
            strings.extend_from_slice(bytes);
            places.len() - 1
        };
        let arguments: Vec<usize> = contents.arguments.iter().map(|word| put(word.as_bytes_with_nul())).collect();
        let environment: Vec<usize> = contents.environment.iter().map(|word| put(word.as_bytes_with_nul())).collect();
        let platform = put(b"x86_64\0");
        let random = put(&contents.random);
        let executable = put(contents.executable.to_bytes_with_nul());
        // The kernel leaves a word of zeros at the very top.
        let strings_at = (top - 8 - strings.len() as u64) / 16 * 16;
        let at = |place: usize| strings_at + places[place];

        let mut words: Vec<u64> = vec![arguments.len() as u64];
        words.extend(arguments.iter().map(|&place| at(place)));
        words.push(0);
        words.extend(environment.iter().map(|&place| at(place)));
        words.push(0);
        let auxiliary_word = words.len();
        for &(kind, value) in contents.auxiliary {
            let value = match kind {
                AT_EXECFN => at(executable),
                AT_RANDOM => at(random),
                AT_PLATFORM => at(platform),
                _ => value,
            };
            words.extend([kind, value]);
        }
        words.extend([0, 0]);

        let pointer = (strings_at - 8 * words.len() as u64) / 16 * 16;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize((strings_at - pointer) as usize, 0);
        bytes.extend_from_slice(&strings);
        bytes.resize((top - pointer) as usize, 0);
        Self { pointer, bytes, auxiliary: pointer + 8 * auxiliary_word as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_can_be_read_back() {
        let c = |text: &str| CString::new(text).unwrap();
        for count in 0..5 {
            let arguments: Vec<CString> = (0..count).map(|n| c(&"x".repeat(n * 3))).collect();
            let environment = [c("A=1"), c("PATH=/bin")];
            let auxiliary = [(6, 4096), (AT_RANDOM, 0), (AT_EXECFN, 0), (AT_PLATFORM, 0)];
            let contents = StackContents {
                arguments: &arguments,
                environment: &environment,
                executable: c"./prog",
                auxiliary: &auxiliary,
                random: *b"0123456789abcdef",
            };
            let stack = Stack::build(0x7000_0000, &contents);
            assert!(stack.pointer.is_multiple_of(16));
            assert_eq!(stack.pointer + stack.bytes.len() as u64, 0x7000_0000);
            let word = |at: u64| {
                let at = (at - stack.pointer) as usize;
                u64::from_le_bytes(stack.bytes[at..at + 8].try_into().unwrap())
            };
            let string = |at: u64| CStr::from_bytes_until_nul(&stack.bytes[(at - stack.pointer) as usize..]).unwrap();
            let mut at = stack.pointer;
            let mut next = || {
                at += 8;
                word(at - 8)
            };
            assert_eq!(next(), count as u64);
            for argument in &arguments {
                assert_eq!(string(next()), argument.as_c_str());
            }
            assert_eq!(next(), 0);
            assert_eq!([string(next()), string(next())], [c"A=1", c"PATH=/bin"]);
            assert_eq!(next(), 0);
            assert_eq!([next(), next()], [6, 4096]);
            assert_eq!(next(), AT_RANDOM);
            let random = next();
            assert_eq!(&stack.bytes[(random - stack.pointer) as usize..][..16], b"0123456789abcdef");
            assert_eq!((next(), string(next())), (AT_EXECFN, c"./prog"));
            assert_eq!((next(), string(next())), (AT_PLATFORM, c"x86_64"));
            assert_eq!([next(), next()], [0, 0]);
        }
    }
}
