use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::EntryMode;
use crate::bus::{AfterWrite, BusDevice};
use crate::events;
use crate::memory::{MemorySize, create};

/// Where the test programs lie, and the port that they write to.
const PROGRAM: u64 = 0x1000;
const PORT: u64 = 0x80;

/// A device whose writes take until the test lets them go.
struct Stuck(Arc<Mutex<()>>, mpsc::Sender<()>);

impl BusDevice for Stuck {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) -> AfterWrite {
        let _ = self.1.send(());
        drop(self.0.lock());
        AfterWrite::Run
    }
}

/// A device that parks whoever writes.
struct Alarm(mpsc::Sender<()>);

impl BusDevice for Alarm {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) -> AfterWrite {
        let _ = self.0.send(());
        AfterWrite::Park
    }
}

/// Starts one vCPU in 32-bit protected mode at these bytes.
fn start(code: &[u8], device: impl BusDevice + 'static) -> Vm {
    let memory = create(MemorySize::new(2 << 20).unwrap()).unwrap();
    memory.write_slice(code, GuestAddress(PROGRAM)).unwrap();
    let mut ports = Bus::new();
    ports.insert("test", PORT, 1, Arc::new(Mutex::new(device))).unwrap();
    let (events, _queue) = events::channel().unwrap();
    let with = VcpuEnvironment {
        ports: Arc::new(ports),
        mmio: Arc::new(Bus::new()),
        exit_hooks: Arc::new(Vec::new()),
        events,
        hyperv: None,
        cpu_mask: CpuMask::default(),
    };
    let entry = BootState { entry: PROGRAM, rbx: 0, rsi: 0, rsp: 0, mode: EntryMode::Protected32 };
    VmBuilder::new(memory).unwrap().start(1, &entry, &with).unwrap()
}

fn has_kvm() -> bool {
    let kvm = open_kvm();
    if let Err(error) = &kvm {
        println!("SKIPPED kvm: {error}");
    }
    kvm.is_ok()
}

#[test]
fn a_vcpu_that_does_not_stop_is_named_and_the_pause_ends() {
    if !has_kvm() {
        return;
    }
    let (sender, entered) = mpsc::channel();
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    // 1: out 0x80, al; jmp 1b
    let mut vm = start(&[0xe6, 0x80, 0xeb, 0xfc], Stuck(gate.clone(), sender));
    entered.recv().unwrap();
    let guest = vm.pause(Duration::from_millis(50));
    assert_eq!(guest.not_stopped(), [0]);
    assert!(guest.cpus()[0].registers.is_none());
    drop(held);
}

#[test]
fn a_half_done_port_access_is_completed_before_registers_are_read() {
    if !has_kvm() {
        return;
    }
    let (sender, entered) = mpsc::channel();
    // mov al, 7; out 0x80, al; jmp .
    let mut vm = start(&[0xb0, 0x07, 0xe6, 0x80, 0xeb, 0xfe], Alarm(sender));
    entered.recv().unwrap();
    let guest = vm.pause(Duration::from_secs(5));
    assert!(guest.not_stopped().is_empty());
    let registers = guest.cpus()[0].registers.clone().unwrap();
    assert_eq!((registers.rip, registers.rax & 0xff), (PROGRAM + 4, 7));
}

#[test]
fn a_parked_vcpu_runs_on_when_told_to() {
    if !has_kvm() {
        return;
    }
    let (sender, entered) = mpsc::channel();
    // 1: out 0x80, al; jmp 1b
    let vm = start(&[0xe6, 0x80, 0xeb, 0xfc], Alarm(sender));
    entered.recv().unwrap();
    for _ in 0..3 {
        assert!(entered.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
        vm.run_on();
        entered.recv_timeout(Duration::from_secs(5)).unwrap();
    }
}

/// A device that takes its time, so that a pause finds the vCPU inside.
struct SlowRead(mpsc::Sender<()>);
impl BusDevice for SlowRead {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        let _ = self.0.send(());
        std::thread::sleep(Duration::from_millis(100));
        data.fill(0x11);
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) -> AfterWrite {
        AfterWrite::Run
    }
}

#[test]
fn an_access_in_several_parts_is_completed_before_registers_are_read() {
    if !has_kvm() {
        return;
    }
    let (sender, entered) = mpsc::channel();
    let memory = create(MemorySize::new(2 << 20).unwrap()).unwrap();
    // mov eax, [0xd0000ffe]; jmp .
    memory.write_slice(&[0xa1, 0xfe, 0x0f, 0x00, 0xd0, 0xeb, 0xfe], GuestAddress(PROGRAM)).unwrap();
    let mut mmio = Bus::new();
    mmio.insert("test", 0xd000_0000, 0x2000, Arc::new(Mutex::new(SlowRead(sender)))).unwrap();
    let (events, _queue) = events::channel().unwrap();
    let with = VcpuEnvironment {
        ports: Arc::new(Bus::new()),
        mmio: Arc::new(mmio),
        exit_hooks: Arc::new(Vec::new()),
        events,
        hyperv: None,
        cpu_mask: CpuMask::default(),
    };
    let entry = BootState { entry: PROGRAM, rbx: 0, rsi: 0, rsp: 0, mode: EntryMode::Protected32 };
    let mut vm = VmBuilder::new(memory).unwrap().start(1, &entry, &with).unwrap();
    entered.recv().unwrap();
    let guest = vm.pause(Duration::from_secs(5));
    let registers = guest.cpus()[0].registers.clone().unwrap();
    assert_eq!((registers.rip, registers.rax & 0xffff_ffff), (PROGRAM + 5, 0x1111_1111));
}
