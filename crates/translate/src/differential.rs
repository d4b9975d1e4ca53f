//! Differential tests: the same bytes run by the processor and by the engine, and everything compared that a program
//! could see: registers, flags, vectors, x87, memory, and the signal that ends them with its address and instruction.

mod generate;
mod machine;
mod sequences;
mod situations;
mod stepping;
