//! throw-away
#![allow(missing_docs)]
use lumina_kernel::backward::{Inputs, Operand, Outputs, Precision, backward};
use lumina_kernel::executor::Serial;
use lumina_kernel::weights::code_stride;
use lumina_kernel::{Params, Spec, Tier};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (m, k, n): (usize, usize, usize) = (a[1].parse().unwrap(), a[2].parse().unwrap(), a[3].parse().unwrap());
    let what = a[4].clone();
    let reps: usize = a[5].parse().unwrap();
    let params = Params::new(&Spec { input_bits: 8, weight_bits: 8, output_bits: 8, ..Spec::default() }).unwrap();
    let dy = vec![1f32; m * n];
    let x = vec![1i8; m * code_stride(k)];
    let w = vec![1i8; n * code_stride(k)];
    let xs = vec![1f32; m];
    let ws = vec![1f32; n];
    let inputs = Inputs {
        dy: &dy,
        x: Operand::I8(&x),
        x_step: &xs,
        weight: Operand::I8(&w),
        weight_scale: &ws,
        adc_mask: None,
        dac_mask: None,
        k,
    };
    let (mut dx, mut dw, mut db) = (vec![0f32; m * k], vec![0f32; n * k], vec![0f32; n]);
    for _ in 0..reps {
        backward(
            *Tier::available().last().unwrap(),
            &Serial,
            &params,
            Precision::from_name(&a[6]).unwrap(),
            &inputs,
            Outputs {
                x: what.contains('x').then_some(&mut dx[..]),
                weight: what.contains('w').then_some(&mut dw[..]),
                bias: what.contains('b').then_some(&mut db[..]),
            },
        )
        .unwrap();
    }
}
