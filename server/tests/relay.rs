//! The bad network of the fault suite does what it says.

mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use support::relay::{Faults, Relay};

fn sockets() -> (UdpSocket, UdpSocket) {
    let pair = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    for socket in &pair {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let [device, server] = pair;
    (device, server)
}

#[test]
fn packets_go_both_ways_and_a_new_address_is_another_one() {
    let (device, server) = sockets();
    let relay = Relay::start(server.local_addr().unwrap(), Faults::default(), 1);
    let mut packet = [0; 8];
    let mut exchange = || {
        device.send_to(b"question", relay.address()).unwrap();
        let (_, from) = server.recv_from(&mut packet).unwrap();
        assert_eq!(&packet, b"question");
        server.send_to(b"answer!!", from).unwrap();
        device.recv_from(&mut packet).unwrap();
        assert_eq!(&packet, b"answer!!");
        from
    };
    let first = exchange();
    assert_eq!(exchange(), first);
    relay.rebind();
    assert_ne!(exchange(), first);
    assert_eq!(relay.passed(), 6);
}

#[test]
fn a_share_of_the_packets_is_lost_and_a_cut_line_passes_none() {
    let (device, server) = sockets();
    let faults = Faults { loss: 0.3, ..Faults::default() };
    let relay = Relay::start(server.local_addr().unwrap(), faults, 7);
    let count = |packets: usize| {
        for _ in 0..packets {
            device.send_to(b"x", relay.address()).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        std::iter::repeat_with(|| server.recv_from(&mut [0])).take_while(Result::is_ok).count()
    };
    assert!((90..190).contains(&count(200)));
    relay.cut(true);
    assert_eq!(count(20), 0);
    relay.cut(false);
    relay.set_faults(Faults { duplicate: 1.0, ..Faults::default() });
    assert!(count(20) > 30);
}
