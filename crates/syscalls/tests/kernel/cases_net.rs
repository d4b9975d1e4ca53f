//! Sockets, and requests to them.

use libc::*;

use crate::world::{World, raw};
use crate::{Case, case};

/// `struct sockaddr_in` of a port of this machine.
fn local(port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = AF_INET as u8;
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

/// A datagram socket that is bound, and its address.
fn receiver(world: &mut World) -> (u64, [u8; 16]) {
    let socket = world.socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK);
    let mut address = local(0);
    assert_eq!(raw(SYS_bind, [socket, address.as_ptr() as u64, 16, 0, 0, 0]), 0);
    let mut size = 16_u32;
    let args = [socket, address.as_mut_ptr() as u64, &raw mut size as u64, 0, 0, 0];
    assert_eq!(raw(SYS_getsockname, args), 0);
    (socket, address)
}

/// A datagram socket that has received something.
fn received(world: &mut World, messages: usize) -> u64 {
    let (socket, address) = receiver(world);
    let (sender, _) = receiver(world);
    for _ in 0..messages {
        let args = [sender, b"datagram".as_ptr() as u64, 8, 0, address.as_ptr() as u64, 16];
        assert_eq!(raw(SYS_sendto, args), 8);
    }
    socket
}

/// A stream socket to which another has connected, and that one.
fn listener(world: &mut World) -> (u64, u64) {
    let socket = world.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    let mut address = local(0);
    assert_eq!(raw(SYS_bind, [socket, address.as_ptr() as u64, 16, 0, 0, 0]), 0);
    assert_eq!(raw(SYS_listen, [socket, 1, 0, 0, 0, 0]), 0);
    let mut size = 16_u32;
    raw(SYS_getsockname, [socket, address.as_mut_ptr() as u64, &raw mut size as u64, 0, 0, 0]);
    let other = world.socket(AF_INET, SOCK_STREAM);
    assert_eq!(raw(SYS_connect, [other, address.as_ptr() as u64, 16, 0, 0, 0]), 0);
    (socket, other)
}

/// What `accept` returns is a descriptor that nobody else closes.
fn accepting(world: &mut World, size: u32) -> [u64; 6] {
    let (socket, _) = listener(world);
    [socket, world.room(16), world.halves(&[size]), 0, 0, 0]
}

/// `struct msghdr` of these parts, its padding left alone.
fn message(world: &mut World, name: (u64, u32), vector: (u64, u64), control: (u64, u64)) -> u64 {
    let message = world.room(56);
    fill(world, message, name, vector, control);
    message
}

fn fill(world: &mut World, at: u64, name: (u64, u32), vector: (u64, u64), control: (u64, u64)) {
    world.put(at, &name.0.to_le_bytes());
    world.put(at + 8, &name.1.to_le_bytes());
    for (offset, word) in [(16, vector.0), (24, vector.1), (32, control.0), (40, control.1)] {
        world.put(at + offset, &word.to_le_bytes());
    }
}

/// A control message that sends a descriptor.
fn rights(descriptor: u64) -> [u64; 3] {
    [20, SOL_SOCKET as u64 | (SCM_RIGHTS as u64) << 32, descriptor]
}

/// A socket to which a descriptor was sent.
fn given(world: &mut World) -> u64 {
    let (one, two) = world.socket_pair(SOCK_DGRAM | SOCK_NONBLOCK);
    let file = world.file();
    let (control, vector) = (rights(file), [b"x".as_ptr() as u64, 1]);
    let message = [0, 0, vector.as_ptr() as u64, 1, control.as_ptr() as u64, 24, 0];
    assert_eq!(raw(SYS_sendmsg, [one, message.as_ptr() as u64, 0, 0, 0, 0]), 1);
    two
}

/// An interface request about the loopback device.
fn interface(world: &mut World) -> u64 {
    let request = world.room(40);
    world.put(request, b"lo\0");
    request
}

fn datagram(world: &mut World) -> u64 {
    world.socket(AF_INET, SOCK_DGRAM)
}

/// A filter that accepts all.
fn filter(world: &mut World) -> u64 {
    let instructions = world.halves(&[0x0006, 0xffff]);
    let program = world.room(16);
    world.put(program, &[1, 0]);
    world.put(program + 8, &instructions.to_le_bytes());
    program
}

pub const CASES: &[Case] = &[
    case("socket", SYS_socket, |_| [AF_INET as u64, SOCK_DGRAM as u64, 0, 0, 0, 0]),
    case("socketpair", SYS_socketpair, |w| [1, 1, 0, w.room(8), 0, 0]),
    case("bind, inet", SYS_bind, |w| [datagram(w), w.bytes(&local(0)), 16, 0, 0, 0]),
    case("bind, inet6", SYS_bind, |w| {
        let mut address = [0; 28];
        address[0] = AF_INET6 as u8;
        address[23] = 1;
        [w.socket(AF_INET6, SOCK_DGRAM), w.bytes(&address), 28, 0, 0, 0]
    }),
    case("bind, unix", SYS_bind, |w| {
        let mut address = vec![AF_UNIX as u8, 0];
        address.extend(w.folder.join("socket").to_str().expect("utf-8").bytes());
        address.push(0);
        let size = address.len() as u64;
        [w.socket(AF_UNIX, SOCK_STREAM), w.bytes(&address), size, 0, 0, 0]
    }),
    case("bind, abstract", SYS_bind, |w| {
        [w.socket(AF_UNIX, SOCK_STREAM), w.bytes(b"\x01\0\0leakscope-syscalls"), 21, 0, 0, 0]
    }),
    case("bind, netlink", SYS_bind, |w| {
        [w.socket(AF_NETLINK, SOCK_RAW), w.bytes(&[AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 12, 0, 0, 0]
    }),
    case("connect", SYS_connect, |w| [datagram(w), w.bytes(&local(9)), 16, 0, 0, 0]),
    case("accept", SYS_accept, |w| accepting(w, 16)),
    case("accept4", SYS_accept4, |w| accepting(w, 16)),
    case("accept, name cut", SYS_accept, |w| {
        let (socket, _) = listener(w);
        [socket, w.room(5), w.halves(&[5]), 0, 0, 0]
    }),
    case("getsockname", SYS_getsockname, |w| [receiver(w).0, w.room(100), w.halves(&[100]), 0, 0, 0]),
    case("getpeername", SYS_getpeername, |w| [listener(w).1, w.room(16), w.halves(&[16]), 0, 0, 0]),
    case("sendto", SYS_sendto, |w| {
        let (socket, address) = receiver(w);
        [socket, w.bytes(b"hello"), 5, 0, w.bytes(&address), 16]
    }),
    case("recvfrom", SYS_recvfrom, |w| [received(w, 1), w.room(100), 100, 0, w.room(50), w.halves(&[50])]),
    case("recvfrom, name cut", SYS_recvfrom, |w| [received(w, 1), w.room(5), 5, 0, w.room(7), w.halves(&[7])]),
    case("sendmsg", SYS_sendmsg, |w| {
        let (socket, address) = receiver(w);
        let name = w.bytes(&address);
        let vector = w.vector(&[(3, Some(1)), (4, Some(2))]);
        [socket, message(w, (name, 16), (vector, 2), (0, 0)), 0, 0, 0, 0]
    }),
    case("sendmsg, control", SYS_sendmsg, |w| {
        let socket = w.socket_pair(SOCK_DGRAM).0;
        let file = w.file();
        let control = w.words(&rights(file));
        let vector = w.vector(&[(3, Some(1))]);
        [socket, message(w, (0, 0), (vector, 1), (control, 24)), 0, 0, 0, 0]
    }),
    case("recvmsg", SYS_recvmsg, |w| {
        let socket = received(w, 1);
        let (name, vector) = (w.room(30), w.vector(&[(3, None), (90, None)]));
        [socket, message(w, (name, 30), (vector, 2), (0, 0)), 0, 0, 0, 0]
    }),
    case("recvmsg, name cut", SYS_recvmsg, |w| {
        let socket = received(w, 1);
        let (name, vector) = (w.room(4), w.vector(&[(3, None), (90, None)]));
        [socket, message(w, (name, 4), (vector, 2), (0, 0)), 0, 0, 0, 0]
    }),
    case("recvmsg, control", SYS_recvmsg, |w| {
        let socket = given(w);
        let (control, vector) = (w.room(100), w.vector(&[(30, None)]));
        [socket, message(w, (0, 0), (vector, 1), (control, 100)), 0, 0, 0, 0]
    })
    .loose()
    .uncut(),
    case("sendmmsg", SYS_sendmmsg, |w| {
        let (socket, address) = receiver(w);
        let name = w.bytes(&address);
        let messages = w.room(128);
        for index in 0..2 {
            let vector = w.vector(&[(3, Some(1))]);
            fill(w, messages + index * 64, (name, 16), (vector, 1), (0, 0));
        }
        [socket, messages, 2, 0, 0, 0]
    })
    .uncut(),
    case("recvmmsg", SYS_recvmmsg, |w| {
        let socket = received(w, 2);
        let messages = w.room(192);
        for index in 0..3 {
            let (name, vector) = (w.room(10), w.vector(&[(3, None), (20, None)]));
            fill(w, messages + index * 64, (name, 10), (vector, 2), (0, 0));
        }
        [socket, messages, 3, MSG_DONTWAIT as u64, w.words(&[5, 0]), 0]
    })
    .uncut(),
    case("setsockopt", SYS_setsockopt, |w| [datagram(w), SOL_SOCKET as u64, SO_REUSEADDR as u64, w.halves(&[1]), 4, 0]),
    case("setsockopt, linger", SYS_setsockopt, |w| {
        [datagram(w), SOL_SOCKET as u64, SO_LINGER as u64, w.halves(&[1, 1]), 8, 0]
    }),
    case("setsockopt, filter", SYS_setsockopt, |w| {
        [datagram(w), SOL_SOCKET as u64, SO_ATTACH_FILTER as u64, filter(w), 16, 0]
    }),
    case("getsockopt", SYS_getsockopt, |w| {
        [datagram(w), SOL_SOCKET as u64, SO_TYPE as u64, w.room(4), w.halves(&[4]), 0]
    }),
    case("getsockopt, longer", SYS_getsockopt, |w| {
        [datagram(w), SOL_SOCKET as u64, SO_TYPE as u64, w.room(20), w.halves(&[20]), 0]
    }),
    case("getsockopt, tcp_info", SYS_getsockopt, |w| {
        [listener(w).1, IPPROTO_TCP as u64, TCP_INFO as u64, w.room(400), w.halves(&[400]), 0]
    }),
    case("getsockopt, filter", SYS_getsockopt, |w| {
        let socket = datagram(w);
        let program = filter(w);
        let args = [socket, SOL_SOCKET as u64, SO_ATTACH_FILTER as u64, program, 16, 0];
        raw(SYS_setsockopt, args);
        [socket, SOL_SOCKET as u64, SO_ATTACH_FILTER as u64, w.room(80), w.halves(&[10]), 0]
    })
    .loose()
    .uncut(),
    case("SIOCGIFCONF", SYS_ioctl, |w| {
        let (room, request) = (w.room(200), w.room(16));
        w.put(request, &200_u32.to_le_bytes());
        w.put(request + 8, &room.to_le_bytes());
        [datagram(w), 0x8912, request, 0, 0, 0]
    })
    .loose(),
    case("SIOCGIFFLAGS", SYS_ioctl, |w| [datagram(w), 0x8913, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFADDR", SYS_ioctl, |w| [datagram(w), 0x8915, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFNETMASK", SYS_ioctl, |w| [datagram(w), 0x891b, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFMTU", SYS_ioctl, |w| [datagram(w), 0x8921, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFHWADDR", SYS_ioctl, |w| [datagram(w), 0x8927, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFINDEX", SYS_ioctl, |w| [datagram(w), 0x8933, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFTXQLEN", SYS_ioctl, |w| [datagram(w), 0x8942, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFMAP", SYS_ioctl, |w| [datagram(w), 0x8970, interface(w), 0, 0, 0]).loose(),
    case("SIOCGIFNAME", SYS_ioctl, |w| {
        let request = w.room(40);
        w.put(request + 16, &1_u32.to_le_bytes());
        [datagram(w), 0x8910, request, 0, 0, 0]
    })
    .loose(),
    case("SIOCETHTOOL, link", SYS_ioctl, |w| {
        let information = w.room(8);
        w.put(information, &10_u32.to_le_bytes());
        let request = interface(w);
        w.put(request + 16, &information.to_le_bytes());
        [datagram(w), 0x8946, request, 0, 0, 0]
    })
    .loose(),
    case("SIOCETHTOOL, time stamps", SYS_ioctl, |w| {
        let information = w.room(44);
        w.put(information, &0x41_u32.to_le_bytes());
        let request = interface(w);
        w.put(request + 16, &information.to_le_bytes());
        [datagram(w), 0x8946, request, 0, 0, 0]
    })
    .loose(),
    case("SIOCATMARK", SYS_ioctl, |w| [listener(w).1, 0x8905, w.room(4), 0, 0, 0]),
    case("SIOCGPGRP", SYS_ioctl, |w| [datagram(w), 0x8904, w.room(4), 0, 0, 0]),
    case("SIOCSPGRP", SYS_ioctl, |w| [datagram(w), 0x8902, w.halves(&[0]), 0, 0, 0]),
    case("SIOCOUTQ", SYS_ioctl, |w| [listener(w).1, 0x5411, w.room(4), 0, 0, 0]),
    case("SIOCOUTQNSD", SYS_ioctl, |w| [listener(w).1, 0x894b, w.room(4), 0, 0, 0]),
    case("FIONREAD", SYS_ioctl, |w| [received(w, 1), 0x541b, w.room(4), 0, 0, 0]),
    case("SIOCGSTAMP", SYS_ioctl, |w| {
        let (socket, address) = receiver(w);
        let (mut buffer, mut time) = ([0_u8; 8], [0_u64; 2]);
        // The first question finds nothing, and lets the times be kept from now on.
        raw(SYS_ioctl, [socket, 0x8906, time.as_mut_ptr() as u64, 0, 0, 0]);
        raw(SYS_sendto, [socket, b"datagram".as_ptr() as u64, 8, 0, address.as_ptr() as u64, 16]);
        raw(SYS_recvfrom, [socket, buffer.as_mut_ptr() as u64, 8, 0, 0, 0]);
        [socket, 0x8906, w.room(16), 0, 0, 0]
    }),
];
