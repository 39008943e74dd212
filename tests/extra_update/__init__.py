"""An update that somebody adds: this package is its one file and its one row in UPDATES."""

from extra_update.loha import LoHa

ROW = {LoHa.name: LoHa}
