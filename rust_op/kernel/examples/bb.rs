//! throw-away bench
#![allow(missing_docs, unsafe_code)]
use lumina_kernel::backward::{Inputs, Operand, Outputs, Precision, backward};
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::forward::mask_stride;
use lumina_kernel::weights::code_stride;
use lumina_kernel::{Params, Spec, Tier};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Instant;

struct Shared {
    epoch: AtomicU64,
    next: AtomicUsize,
    count: AtomicUsize,
    done: AtomicUsize,
    stop: AtomicBool,
    task: std::cell::UnsafeCell<Option<&'static (dyn Fn(usize) + Sync)>>,
}
unsafe impl Sync for Shared {}
struct Two(Arc<Shared>);
fn work(s: &Shared) {
    let t = unsafe { (*s.task.get()).unwrap() };
    let c = s.count.load(Acquire);
    loop {
        let i = s.next.fetch_add(1, AcqRel);
        if i >= c {
            break;
        }
        t(i);
    }
    s.done.fetch_add(1, Release);
}
impl Two {
    fn new() -> Self {
        let s = Arc::new(Shared {
            epoch: 0.into(),
            next: 0.into(),
            count: 0.into(),
            done: 0.into(),
            stop: false.into(),
            task: None.into(),
        });
        let t = s.clone();
        std::thread::spawn(move || {
            let mut seen = 0;
            loop {
                while t.epoch.load(Acquire) == seen {
                    if t.stop.load(Relaxed) {
                        return;
                    }
                    std::hint::spin_loop();
                }
                seen += 1;
                work(&t);
            }
        });
        Two(s)
    }
}
impl Drop for Two {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}
impl Executor for Two {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let s = &self.0;
        unsafe {
            *s.task.get() = Some(std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task));
        }
        s.count.store(count, Release);
        s.next.store(0, Release);
        s.done.store(0, Release);
        s.epoch.fetch_add(1, AcqRel);
        work(s);
        while s.done.load(Acquire) < 2 {
            std::hint::spin_loop();
        }
    }
}

fn al<T: Clone + Default>(v: Vec<T>) -> &'static mut [T] {
    let z = std::mem::size_of::<T>();
    let mut b: Vec<T> = vec![T::default(); v.len() + 64 / z];
    let o = (64 - (b.as_ptr() as usize) % 64) % 64 / z;
    b[o..o + v.len()].clone_from_slice(&v);
    let n = v.len();
    &mut b.leak()[o..o + n]
}
fn best(mut f: impl FnMut(), budget: f64) -> f64 {
    f();
    let mut b = f64::MAX;
    let t0 = Instant::now();
    let mut n = 0;
    while n < 4 || t0.elapsed().as_secs_f64() < budget {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed().as_secs_f64());
        n += 1;
    }
    b
}

fn main() {
    let mask = std::env::var("MASK").is_ok();
    let precision = std::env::var("PRECISION").unwrap_or("highest".into());
    let _ = &precision;
    let tier = match std::env::var("LUMINA_ISA") {
        Ok(_) => Tier::selected().unwrap(),
        _ => *Tier::available().last().unwrap(),
    };
    let shapes = [
        (32, 1024, 1024),
        (256, 1024, 1024),
        (1024, 1024, 1024),
        (256, 256, 256),
        (128, 784, 512),
        (4096, 64, 1024),
        (512, 384, 1536),
        (64, 64, 64),
    ];
    let only = std::env::args().nth(1);
    for (m, k, n) in shapes {
        let name = format!("{m}x{k}x{n}");
        if only.as_ref().is_some_and(|o| *o != name) {
            continue;
        }
        let params = Params::new(&Spec {
            input_bits: 8,
            weight_bits: 8,
            output_bits: 8,
            input_range: if mask { 1.0 } else { 0.0 },
            output_range: vec![if mask { 1.0 } else { 0.0 }],
            ..Spec::default()
        })
        .unwrap();
        let mut s = 1u64;
        let mut r = || {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (s >> 40) as f32 / 8388608.0 - 1.0
        };
        let dy: &[f32] = al::<f32>((0..m * n).map(|_| r()).collect());
        let x: &[i8] = al::<i8>((0..m * code_stride(k)).map(|_| (r() * 127.0) as i8).collect());
        let w: &[i8] = al::<i8>((0..n * code_stride(k)).map(|_| (r() * 127.0) as i8).collect());
        let xs: &[f32] = al::<f32>((0..m).map(|_| r()).collect());
        let ws: &[f32] = al::<f32>((0..n).map(|_| r()).collect());
        let am: &[u8] =
            al::<u8>((0..m * mask_stride(n)).map(|_| if r() > 0.9 { (r() * 128.0) as i8 as u8 } else { 0 }).collect());
        let dm: &[u8] =
            al::<u8>((0..m * mask_stride(k)).map(|_| if r() > 0.9 { (r() * 128.0) as i8 as u8 } else { 0 }).collect());
        let inputs = Inputs {
            dy,
            x: Operand::I8(x),
            x_step: xs,
            weight: Operand::I8(w),
            weight_scale: ws,
            adc_mask: mask.then_some(&am[..]),
            dac_mask: mask.then_some(&dm[..]),
            k,
        };
        let (dx, dw, db) = (al(vec![0f32; m * k]), al(vec![0f32; n * k]), al(vec![0f32; n]));
        let two = Two::new();
        for (label, ex) in [("1t", &Serial as &dyn Executor), ("2t", &two)] {
            let th = if label == "1t" { 1.0 } else { 2.0 };
            let mut run = |a: bool, b: bool, c: bool| {
                best(
                    || {
                        backward(
                            tier,
                            ex,
                            &params,
                            Precision::from_name(&precision).unwrap(),
                            &inputs,
                            Outputs {
                                x: a.then_some(&mut dx[..]),
                                weight: b.then_some(&mut dw[..]),
                                bias: c.then_some(&mut db[..]),
                            },
                        )
                        .unwrap()
                    },
                    0.15,
                )
            };
            let fl = 2.0 * (m * n * k) as f64;
            let (tx, tw, tb, all) =
                (run(true, false, false), run(false, true, false), run(false, false, true), run(true, true, true));
            println!(
                "{name:16} {label} dx {:8.1}us {:4.0}%  dw {:8.1}us {:4.0}%  db {:6.1}us  all {:8.1}us {:4.0}%",
                tx * 1e6,
                fl / tx / 2.61e9 / th,
                tw * 1e6,
                fl / tw / 2.61e9 / th,
                tb * 1e6,
                all * 1e6,
                2.0 * fl / all / 2.61e9 / th
            );
        }
    }
}
