use super::*;
use crate::bus::contract::any_access_is_survived;
use crate::events::{self, EventQueue, MachineEvent};

/// A function with a BAR of 0x1000 bytes that reads as the offset and remembers writes.
struct Probe {
    config: ConfigSpace,
    written: Vec<(u64, Vec<u8>)>,
}

impl PciFunction for Probe {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_len(&self) -> u32 {
        0x1000
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(offset.to_le_bytes()[0]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        self.written.push((offset, data.to_vec()));
        AfterWrite::Park
    }
}

fn probe(device: u16) -> Arc<Mutex<Probe>> {
    let identity = Identity { vendor: 0x1234, device, subsystem: (0, 0), class: 0xff_0000, revision: 0 };
    Arc::new(Mutex::new(Probe { config: ConfigSpace::new(&identity), written: Vec::new() }))
}

struct Bench {
    probes: [Arc<Mutex<Probe>>; 2],
    bus: Arc<PciBus>,
    ports: ConfigPorts,
    events: EventQueue,
}

impl Bench {
    fn new() -> Self {
        let probes = [probe(1), probe(2)];
        let mut bus = PciBus::new();
        for probe in &probes {
            bus.insert("probe", probe.clone()).unwrap();
        }
        let bus = Arc::new(bus);
        let (sender, events) = events::channel().unwrap();
        let ports = ConfigPorts::new(bus.clone(), ResetControl::new(sender));
        Self { probes, bus, ports, events }
    }

    fn select(&mut self, slot: u32, register: u32) {
        let address = ENABLE | slot << 11 | register;
        assert_eq!(self.ports.write(0, &address.to_le_bytes()), AfterWrite::Run);
    }

    fn read(&mut self, slot: u32, register: u32) -> u32 {
        self.select(slot, register);
        let mut data = [0; 4];
        self.ports.read(4, &mut data);
        u32::from_le_bytes(data)
    }

    fn ecam(&self, slot: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        Ecam(self.bus.clone()).read(slot << 15 | register, &mut data);
        u32::from_le_bytes(data)
    }

    fn window(&self, address: u32) -> u8 {
        let mut data = [0xaa];
        Window(self.bus.clone()).read(u64::from(address - layout::PCI_WINDOW), &mut data);
        data[0]
    }
}

#[test]
fn functions_are_found_by_ports_and_in_memory() {
    let mut bench = Bench::new();
    for (slot, expected) in
        [(0, 0x0d57_8086), (1, 0x0001_1234), (2, 0x0002_1234), (3, u32::MAX), (31, u32::MAX)]
    {
        assert_eq!(bench.read(slot, 0), expected, "slot {slot}");
        assert_eq!(bench.ecam(slot.into(), 0), expected, "slot {slot}");
    }
    // Other functions, other buses, and no access without the enable bit.
    for address in [ENABLE | 1 << 8, ENABLE | 1 << 16, 0] {
        let _ = bench.ports.write(0, &u32::to_le_bytes(address));
        let mut data = [0; 4];
        bench.ports.read(4, &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
    }
    assert_eq!((bench.ecam(0, 1 << 12), bench.ecam(1, 0x100)), (u32::MAX, 0));
}

#[test]
fn parts_of_a_register_are_read_by_ports() {
    let mut bench = Bench::new();
    bench.select(2, 0);
    let mut data = [0; 2];
    bench.ports.read(6, &mut data);
    assert_eq!(data, [2, 0]);
    let mut data = [0; 4];
    bench.ports.read(6, &mut data);
    assert_eq!(data, [0xff; 4], "across the port's end");
    bench.ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), ENABLE | 2 << 11);
}

#[test]
fn a_byte_between_the_ports_resets_and_a_word_does_not() {
    let mut bench = Bench::new();
    let _ = bench.ports.write(0, &[0xff; 4]);
    assert!(bench.events.next().is_none());
    assert_eq!(bench.ports.write(1, &[6]), AfterWrite::Park);
    assert!(matches!(bench.events.next(), Some(MachineEvent::Reset(_))));
}

#[test]
fn bars_lie_in_the_window_and_may_be_moved_and_switched_off() {
    let mut bench = Bench::new();
    let bars = [1, 2].map(|slot| bench.read(slot, 0x10));
    assert_eq!(bars, [layout::PCI_WINDOW, layout::PCI_WINDOW + 0x1000]);
    assert_eq!([bars[0] + 5, bars[1] + 6, bars[1] + 0x1000].map(|at| bench.window(at)), [5, 6, 0xff]);
    let window = Window(bench.bus.clone());
    assert_eq!(window.write(0x1fff, &[1, 2]), AfterWrite::Park);
    assert_eq!(bench.probes[1].lock().unwrap().written, [(0xfff, vec![1])], "cut at its end");
    // Moved, by memory and by ports; then off.
    let place = layout::PCI_WINDOW + 0x10_0000;
    let _ = Ecam(bench.bus.clone()).write(1 << 15 | 0x10, &place.to_le_bytes());
    assert_eq!((bench.window(bars[0] + 5), bench.window(place + 7)), (0xff, 7));
    bench.select(1, 4);
    let _ = bench.ports.write(4, &[0, 0]);
    assert_eq!(bench.window(place + 7), 0xff);
}

#[test]
fn a_full_bus_is_an_error() {
    let mut bus = PciBus::new();
    for _ in 1..32 {
        bus.insert("probe", probe(1)).unwrap();
    }
    assert_eq!(bus.insert("one more", probe(1)), Err(PciError::Full { name: "one more" }));
}

#[test]
fn any_access_to_the_bus_is_survived() {
    let mut bench = Bench::new();
    any_access_is_survived(&mut bench.ports, PORTS_LEN);
    let (window, ecam) = (Window(bench.bus.clone()), Ecam(bench.bus.clone()));
    for offset in (0..0x2_0000).step_by(0x7f).chain([u64::from(u32::MAX), u64::MAX >> 1]) {
        for width in 0..=16 {
            let mut data = [0xff; 16];
            ecam.read(offset, &mut data[..width]);
            let _ = ecam.write(offset, &data[..width]);
            window.read(offset, &mut data[..width]);
            let _ = window.write(offset, &data[..width]);
        }
    }
}
