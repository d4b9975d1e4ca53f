//! Each function against the C library's on random strings, and its reports against a map of truth values.

use super::*;

/// Two pages of memory with a shadow, behind them a page that may not be used.
struct Arena {
    base: u64,
    shadow: Vec<u8>,
    bad: Vec<Bad>,
    overlaps: usize,
}

const SIZE: u64 = 2 * PAGE;

impl Arena {
    fn new() -> Self {
        // SAFETY: a new private map at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                (SIZE + PAGE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: base as u64, shadow: vec![0; (SIZE + PAGE) as usize], bad: Vec::new(), overlaps: 0 }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        assert!(offset + bytes.len() as u64 <= SIZE);
        // SAFETY: within the arena.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.base + offset) as *mut u8, bytes.len()) };
        self.base + offset
    }

    fn read(&self, address: u64, bytes: u64) -> Vec<u8> {
        // SAFETY: within the arena.
        unsafe { core::slice::from_raw_parts(address as *const u8, bytes as usize) }.to_vec()
    }
}

impl Watched for Arena {
    fn shadow(&self) -> Shadow {
        // SAFETY: the shadow is as long as the arena, and lives as long as it.
        unsafe { Shadow::new((self.shadow.as_ptr() as u64).wrapping_sub(self.base)) }
    }

    fn is_usable(&mut self, address: u64, _write: bool) -> bool {
        (self.base..self.base + SIZE).contains(&address)
    }

    fn bad(&mut self, bad: Bad) {
        self.bad.push(bad);
    }

    fn overlap(&mut self, _destination: u64, _source: u64, _bytes: Option<u64>) {
        self.overlaps += 1;
    }
}

/// A generator of numbers that is the same in every run: xorshift64*.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    /// Few different letters, so that comparisons and searches go far.
    fn string(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most);
        let letters = 1 + self.below(4) as u8;
        let mut bytes: Vec<u8> = (0..length).map(|_| b'a' + self.below(letters.into()) as u8).collect();
        bytes.push(0);
        bytes
    }
}

fn sign(number: i32) -> i32 {
    number.signum()
}

#[test]
fn results_are_those_of_the_c_library() {
    let (mut m, mut numbers) = (Arena::new(), Numbers(42));
    let ptr = |at: u64| at as *const libc::c_char;
    let void = |at: u64| at as *const libc::c_void;
    for _ in 0..3000 {
        let text = numbers.string(300);
        // Often up against the end, where one byte too many faults.
        let offset = if numbers.below(2) == 0 { SIZE - text.len() as u64 } else { numbers.below(3000) };
        let a = m.write(offset, &text);
        let other = if numbers.below(2) == 0 { text.clone() } else { numbers.string(300) };
        let b = m.write(4000 + numbers.below(500).min(SIZE - 4400), &other);
        let text_length = m.read(a, SIZE - offset).iter().position(|&byte| byte == 0).map(|n| n as u64);
        let Some(length) = text_length else { continue };
        let wanted = b'a' + numbers.below(5) as u8;
        let limit = numbers.below(length + 2);
        // SAFETY: both are strings in the arena; the lengths lie within.
        unsafe {
            assert_eq!(strlen(&mut m, a), Ok(libc::strlen(ptr(a)) as u64));
            assert_eq!(strnlen(&mut m, a, limit), Ok(libc::strnlen(ptr(a), limit as usize) as u64));
            assert_eq!(strchr(&mut m, a, wanted, false), Ok(libc::strchr(ptr(a), wanted.into()) as u64));
            assert_eq!(strchr(&mut m, a, 0, true), Ok(a + length));
            assert_eq!(strrchr(&mut m, a, wanted), Ok(libc::strrchr(ptr(a), wanted.into()) as u64));
            let n = length as usize;
            assert_eq!(memchr(&mut m, a, wanted, length), Ok(libc::memchr(void(a), wanted.into(), n) as u64));
            assert_eq!(memrchr(&mut m, a, wanted, length), Ok(libc::memrchr(void(a), wanted.into(), n) as u64));
            assert_eq!(strcmp(&mut m, a, b, u64::MAX).map(sign), Ok(sign(libc::strcmp(ptr(a), ptr(b)))));
            let expected = sign(libc::strncmp(ptr(a), ptr(b), limit as usize));
            assert_eq!(strcmp(&mut m, a, b, limit).map(sign), Ok(expected));
            assert_eq!(strcasecmp(&mut m, a, b, u64::MAX).map(sign), Ok(sign(libc::strcasecmp(ptr(a), ptr(b)))));
            let common = length.min(other.len() as u64);
            let expected = sign(libc::memcmp(void(a), void(b), common as usize));
            assert_eq!(memcmp(&mut m, a, b, common).map(sign), Ok(expected));
            assert_eq!(strstr(&mut m, a, b), Ok(libc::strstr(ptr(a), ptr(b)) as u64));
            assert_eq!(strcasestr(&mut m, a, b), Ok(libc::strcasestr(ptr(a), ptr(b)) as u64));
            assert_eq!(span(&mut m, a, b, true), Ok(libc::strspn(ptr(a), ptr(b)) as u64));
            assert_eq!(span(&mut m, a, b, false), Ok(libc::strcspn(ptr(a), ptr(b)) as u64));
            let short = (other.len() as u64 - 1).min(3);
            let expected = libc::memmem(void(a), n, void(b), short as usize) as u64;
            assert_eq!(memmem(&mut m, a, length, b, short), Ok(expected));
        }
    }
    assert!(m.bad.is_empty(), "{:?}", m.bad);
}

#[test]
fn copies_are_those_of_a_model() {
    let (mut m, mut numbers) = (Arena::new(), Numbers(7));
    for step in 0..3000 {
        let source = numbers.string(60);
        let target = numbers.string(60);
        let a = m.write(numbers.below(900), &source);
        let d = m.write(1000 + numbers.below(900), &target);
        let text = &source[..source.len() - 1];
        let before = &target[..target.len() - 1];
        let n = numbers.below(70);
        let cut = |bytes: &[u8], n: u64| bytes[..bytes.len().min(n as usize)].to_vec();
        let (result, expected) = match numbers.below(8) {
            0 => (strcpy(&mut m, d, a).map(|_| d), source.clone()),
            1 => (stpcpy(&mut m, d, a).map(|end| end - text.len() as u64), source.clone()),
            2 => {
                let mut expected = cut(text, n);
                let length = expected.len() as u64;
                expected.resize(n as usize, 0);
                (stpncpy(&mut m, d, a, n).map(|end| end - length), expected)
            }
            3 => (strcat(&mut m, d, a), [before, &source].concat()),
            4 => (strncat(&mut m, d, a, n), [before, &cut(text, n), &[0]].concat()),
            5 => {
                let expected = if n == 0 { Vec::new() } else { [&cut(text, n - 1)[..], &[0]].concat() };
                (strlcpy(&mut m, d, a, n).map(|length| d + length - text.len() as u64), expected)
            }
            6 => {
                let room = n.saturating_sub(before.len() as u64);
                let expected = if room == 0 { before.to_vec() } else { [before, &cut(text, room - 1), &[0]].concat() };
                let tried = (before.len() as u64).min(n) + text.len() as u64;
                (strlcat(&mut m, d, a, n).map(|length| d + length - tried), expected)
            }
            _ => (memset(&mut m, d, 0xEE, n), vec![0xEE; n as usize]),
        };
        assert_eq!(result, Ok(d), "step {step}");
        assert_eq!(m.read(d, expected.len() as u64), expected, "step {step}");
    }
    assert_eq!((m.bad.len(), m.overlaps), (0, 0));
}

/// Every forbidden byte that a function has to touch is in a report, and no other.
#[test]
fn reports_are_exact() {
    let (mut m, mut numbers) = (Arena::new(), Numbers(1234));
    for step in 0..4000 {
        let text = numbers.string(40);
        let length = text.len() as u64 - 1;
        let a = m.write(256 + numbers.below(64), &text);
        let d = m.base + 1024 + numbers.below(64);
        m.shadow.fill(0);
        m.bad.clear();
        for _ in 0..numbers.below(6) {
            let at = if numbers.below(2) == 0 { a } else { d } - m.base + numbers.below(48);
            m.shadow[at as usize] = 0xFF;
        }
        let n = numbers.below(length + 1);
        let (reads, writes) = match numbers.below(6) {
            0 => (strlen(&mut m, a).map(|_| length + 1).unwrap(), 0),
            1 => (memchr(&mut m, a, b'z', n).map(|_| n).unwrap(), 0),
            2 => (memmove(&mut m, d, a, n).map(|_| n).unwrap(), n),
            3 => (memset(&mut m, d, 1, n).map(|_| 0).unwrap(), n),
            4 => (strcpy(&mut m, d, a).map(|_| length + 1).unwrap(), length + 1),
            _ => (strrchr(&mut m, a, b'b').map(|_| length + 1).unwrap(), 0),
        };
        let mut expected: Vec<(u64, bool)> = Vec::new();
        for (start, bytes, write) in [(a, reads, false), (d, writes, true)] {
            let forbidden = (start..start + bytes).filter(|at| m.shadow[(at - m.base) as usize] != 0);
            expected.extend(forbidden.map(|at| (at, write)));
        }
        for &(at, write) in &expected {
            let covers = |bad: &Bad| bad.write == write && (bad.address..bad.address + bad.bytes).contains(&at);
            assert!(m.bad.iter().any(covers), "step {step}: {at:x} is not in {:?}", m.bad);
        }
        for bad in &m.bad {
            let range = bad.address..bad.address + bad.bytes;
            let is_expected = expected.iter().any(|(at, write)| range.contains(at) && *write == bad.write);
            assert!(is_expected && matches!(bad.bytes, 1 | 8), "step {step}: {bad:?}");
        }
    }
}

#[test]
fn what_is_not_mapped_is_a_fault() {
    let mut m = Arena::new();
    let (base, end) = (m.base, m.base + SIZE);
    m.write(SIZE - 4, b"aaaa");
    let read = Err(Fault { address: end, write: false });
    assert_eq!(strlen(&mut m, end - 4), read);
    assert_eq!(strlen(&mut m, 0), Err(Fault { address: 0, write: false }));
    assert_eq!(memchr(&mut m, end - 4, b'b', 5), read);
    assert_eq!(memchr(&mut m, end - 4, b'b', 4), Ok(0));
    assert_eq!(memmove(&mut m, base, end - 4, 5), read);
    assert_eq!(memset(&mut m, end - 1, 0, 2), Err(Fault { address: end, write: true }));
    assert_eq!(memset(&mut m, end, 0, 0), Ok(end));
    assert_eq!(wcslen(&mut m, end - 4), read);
}

#[test]
fn overlaps_by_table() {
    for (to, from, bytes, expected) in
        [(0u64, 8u64, 8, 0), (0, 8, 9, 1), (8, 0, 8, 0), (8, 0, 9, 1), (5, 5, 1, 1), (5, 5, 0, 0), (0, 100, 99, 0)]
    {
        let mut m = Arena::new();
        let base = m.base;
        memcpy(&mut m, base + to, base + from, bytes).unwrap();
        assert_eq!(m.overlaps, expected, "{to} {from} {bytes}");
        memmove(&mut m, base + to, base + from, bytes).unwrap();
        assert_eq!(m.overlaps, expected);
    }
}

#[test]
fn wide_functions_by_table() {
    let mut m = Arena::new();
    let wide = |text: &str| text.chars().chain(['\0']).flat_map(|c| (c as i32).to_le_bytes()).collect::<Vec<_>>();
    let a = m.write(0, &wide("hello"));
    let b = m.write(100, &wide("help"));
    let d = m.base + 200;
    assert_eq!((wcslen(&mut m, a), wcsnlen(&mut m, a, 3)), (Ok(5), Ok(3)));
    assert_eq!(wcschr(&mut m, a, 'l' as i32), Ok(a + 8));
    assert_eq!(wcsrchr(&mut m, a, 'l' as i32), Ok(a + 12));
    assert_eq!(wcschr(&mut m, a, 'x' as i32), Ok(0));
    assert_eq!(wmemchr(&mut m, a, 'o' as i32, 4), Ok(0));
    assert_eq!((wcscmp(&mut m, a, b, 3), wcscmp(&mut m, a, b, u64::MAX)), (Ok(0), Ok(-1)));
    assert_eq!(wmemcmp(&mut m, b, a, 4), Ok(1));
    assert_eq!(wcscpy(&mut m, d, a), Ok(d + 20));
    assert_eq!(m.read(d, 24), wide("hello"));
    assert_eq!(wmemset(&mut m, d, 'z' as i32, 5), Ok(d));
    assert_eq!(m.read(d, 24), wide("zzzzz"));
    m.shadow[(d - m.base + 24) as usize] = 0xFF;
    m.write(220, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(wcslen(&mut m, d), Ok(6));
    assert_eq!(m.bad, [Bad { address: d + 24, bytes: 4, write: false, place: 0 }]);
}
