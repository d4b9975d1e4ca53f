//! What kind of program a file is, from its first bytes and its program headers.
//!
//! Sources: elf(5), execve(2), Linux `fs/binfmt_elf.c` and `fs/binfmt_script.c`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::ReadCache;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// Longest `#!` line that the kernel reads (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE_BYTES: usize = 256;

/// What `execve` will make of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProgramKind {
    /// An ELF file.
    Elf(ElfFacts),
    /// A text that starts with `#!`.
    Script {
        /// The program after `#!`.
        interpreter: PathBuf,
        /// The one argument that the kernel passes on, if the line has one.
        argument: Option<OsString>,
    },
    /// A text without `#!` (also an empty file): `execvp` hands it to `/bin/sh`.
    ShellText,
    /// Neither ELF nor text.
    Unknown,
}

/// Word size of an ELF file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
}

/// How an ELF program comes by its libraries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Linkage {
    /// The kernel starts this dynamic loader.
    Dynamic {
        /// Path in `PT_INTERP`.
        interpreter: PathBuf,
    },
    /// Statically linked at a fixed address.
    Static,
    /// Statically linked, position-independent.
    StaticPie,
    /// A dynamic loader, started as a program (`ld-linux-x86-64.so.2 ./program`).
    Loader,
    /// A shared library, which nobody can start.
    SharedLibrary,
    /// An object file or a core file.
    NotAProgram,
}

/// The C library that a dynamic program runs with, judged by its loader's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CLibrary {
    /// GNU libc.
    Glibc,
    /// musl.
    Musl,
    /// Another one, such as Android's or uClibc.
    Other,
}

/// What an ELF file says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ElfFacts {
    /// Word size.
    pub class: Class,
    /// Whether it is little-endian.
    pub little_endian: bool,
    /// `e_machine`.
    pub machine: u16,
    /// How it is linked.
    pub linkage: Linkage,
}

impl ElfFacts {
    /// The machine's usual name, or its number.
    pub fn machine_name(&self) -> String {
        let bits32 = self.class == Class::Bits32;
        let name = match elf::Machine(self.machine) {
            elf::EM_386 => "x86 (32-bit)",
            elf::EM_X86_64 if bits32 => "x86-64 x32",
            elf::EM_X86_64 => "x86-64",
            elf::EM_ARM => "ARM (32-bit)",
            elf::EM_AARCH64 => "AArch64",
            elf::EM_PPC64 => "PowerPC (64-bit)",
            elf::EM_PPC => "PowerPC (32-bit)",
            elf::EM_S390 => "IBM Z",
            elf::EM_RISCV if bits32 => "RISC-V (32-bit)",
            elf::EM_RISCV => "RISC-V (64-bit)",
            elf::EM_MIPS => "MIPS",
            elf::EM_LOONGARCH => "LoongArch",
            elf::Machine(number) => return format!("machine number {number}"),
        };
        name.to_owned()
    }

    /// The C library of a dynamic program; `None` for every other linkage.
    pub fn c_library(&self) -> Option<CLibrary> {
        let Linkage::Dynamic { interpreter } = &self.linkage else { return None };
        let name = interpreter.file_name()?.to_string_lossy();
        Some(if name.starts_with("ld-musl") {
            CLibrary::Musl
        } else if name.starts_with("ld-linux")
            || name.starts_with("ld64.so")
            || name.starts_with("ld-2.")
            || name == "ld.so.1"
        {
            CLibrary::Glibc
        } else {
            CLibrary::Other
        })
    }
}

/// Why a file that starts as ELF cannot be read as one.
#[derive(Debug)]
pub enum ElfError {
    /// It could not be read at all.
    Io(io::Error),
    /// The headers contradict themselves or the file's length; says where.
    Corrupt(String),
}

impl std::fmt::Display for ElfError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Corrupt(what) => write!(f, "damaged ELF file: {what}"),
        }
    }
}

impl std::error::Error for ElfError {}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads what kind of program `path` is.
///
/// # Errors
/// When the file cannot be opened or read, and when its ELF headers are damaged.
pub fn read_program_kind(path: &Path) -> Result<ProgramKind, ElfError> {
    let file = File::open(path)?;
    let mut head = [0; SCRIPT_LINE_BYTES];
    let head_bytes = read_up_to(&file, &mut head)?;
    let head = &head[..head_bytes];
    if head.starts_with(&elf::ELFMAG) {
        return decode_elf(file, head).map(ProgramKind::Elf);
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        return Ok(decode_script_line(line).unwrap_or(ProgramKind::ShellText));
    }
    // The same test as bash: a NUL byte before the first newline means a binary file.
    let first_line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok(if first_line.contains(&0) { ProgramKind::Unknown } else { ProgramKind::ShellText })
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The interpreter and its argument in the rest of a line after `#!`.
fn decode_script_line(line: &[u8]) -> Option<ProgramKind> {
    let line = line.split(|&byte| byte == b'\n' || byte == 0).next()?;
    let line = line.trim_ascii();
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
    let (interpreter, argument) = line.split_at(end);
    let argument = argument.trim_ascii();
    (!interpreter.is_empty()).then(|| ProgramKind::Script {
        interpreter: PathBuf::from(OsString::from_vec(interpreter.to_vec())),
        argument: (!argument.is_empty()).then(|| OsString::from_vec(argument.to_vec())),
    })
}

fn decode_elf(file: File, head: &[u8]) -> Result<ElfFacts, ElfError> {
    let class = *head.get(4).ok_or_else(|| ElfError::Corrupt("it ends inside its first header".into()))?;
    let cache = ReadCache::new(file);
    match elf::FileClass(class) {
        elf::ELFCLASS32 => facts::<elf::FileHeader32<object::Endianness>>(&cache, Class::Bits32),
        elf::ELFCLASS64 => facts::<elf::FileHeader64<object::Endianness>>(&cache, Class::Bits64),
        _ => Err(ElfError::Corrupt(format!("its class is {class}, expected 1 or 2"))),
    }
}

fn corrupt(error: object::read::Error) -> ElfError {
    ElfError::Corrupt(error.to_string())
}

fn facts<H>(data: &ReadCache<File>, class: Class) -> Result<ElfFacts, ElfError>
where
    H: FileHeader<Endian = object::Endianness>,
{
    let header = H::parse(data).map_err(corrupt)?;
    let endian = header.endian().map_err(corrupt)?;
    let little_endian = endian == object::Endianness::Little;
    let machine = header.e_machine(endian).0;
    let facts = |linkage| ElfFacts { class, little_endian, machine, linkage };
    let file_type = header.e_type(endian);
    if file_type != elf::ET_EXEC && file_type != elf::ET_DYN {
        return Ok(facts(Linkage::NotAProgram));
    }
    let segments = header.program_headers(endian, data).map_err(corrupt)?;
    if segments.is_empty() {
        return Err(ElfError::Corrupt("it has no program headers".into()));
    }
    for segment in segments {
        if let Some(interpreter) = segment.interpreter(endian, data).map_err(corrupt)? {
            if interpreter.is_empty() {
                return Err(ElfError::Corrupt("its interpreter's name is empty".into()));
            }
            let interpreter = PathBuf::from(OsString::from_vec(interpreter.to_vec()));
            return Ok(facts(Linkage::Dynamic { interpreter }));
        }
    }
    if file_type == elf::ET_EXEC {
        return Ok(facts(Linkage::Static));
    }
    // An ET_DYN file without an interpreter: the linker marks static-pie programs with DF_1_PIE.
    let mut pie = false;
    for segment in segments {
        for entry in segment.dynamic(endian, data).map_err(corrupt)?.unwrap_or_default() {
            let value: u64 = entry.d_val(endian).into();
            pie |= entry.d_tag(endian) == elf::DT_FLAGS_1 && value & elf::DF_1_PIE.0 != 0;
        }
    }
    let entry: u64 = header.e_entry(endian).into();
    Ok(facts(if pie {
        Linkage::StaticPie
    } else if entry != 0 {
        Linkage::Loader
    } else {
        Linkage::SharedLibrary
    }))
}
