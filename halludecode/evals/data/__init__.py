"""Reading evaluation data; knows no benchmark."""
