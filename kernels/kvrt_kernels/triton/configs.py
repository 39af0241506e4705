"""placeholder"""
from dataclasses import dataclass
@dataclass(frozen=True, slots=True)
class Tile:
    block_m: int
    block_n: int
    warps: int
    stages: int
class Config:
    segment=256
    def decode(self, block_d, bits): return Tile(64, 32, 4, 2)
    def prefill(self, block_d, bits): return Tile(64, 32, 4, 2)
def config(arch): return Config()
